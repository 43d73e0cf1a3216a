"""What a device receives: one file or folder that is checked before anything in it is used."""
