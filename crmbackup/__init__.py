"""crmbackup: the backup, restore and disaster-recovery tool for CRM databases that proves itself."""

__version__ = "0.1.0"
