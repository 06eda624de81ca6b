"""Make this book: its pages, its paper, its lists, its exercises."""
