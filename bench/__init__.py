"""A network-emulation test bench for virtual-machine live migration.

One line explains the whole package::

    scenario.toml -> Scenario -> Testbed -> Migration -> Timeline -> Analysis -> Result -> report

"""

__version__ = "0.1.0"
