"""The page: its markup, tables, illustrations and sections."""
