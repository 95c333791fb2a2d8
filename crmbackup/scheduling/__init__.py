"""Text for those who wake crmbackup: crontabs and systemd units. Pure functions; nothing here touches the machine."""
