"""One package per database. Engines know SQL; they never see keys, packs or storage."""
