"""`python -m blurrerank`."""

from .cli import main

main()
