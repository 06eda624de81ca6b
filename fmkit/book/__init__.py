"""Make this book: execute its notebooks, build and print its pages, check answers."""
