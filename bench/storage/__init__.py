"""The guest's disks: the storage host's side, the hypervisor's block layer, and who may write when."""
