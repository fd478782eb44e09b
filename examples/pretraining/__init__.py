"""How the bundled backbone ``sktl/tiny`` was pretrained."""
