"""OpenFlow 1.3 controllers of the bench, for Ryu and os-ken alike.

They run as processes of their own and never import ``bench``; what they see they write as events (:mod:`.observe`).
"""
