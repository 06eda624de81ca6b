"""What tests share: guards, small notebooks and books, the built pages."""
