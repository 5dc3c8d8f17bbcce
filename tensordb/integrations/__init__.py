"""Other libraries' ways into a database: one file each, imported only where they are used."""
