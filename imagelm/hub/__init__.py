"""A trained folder → repositories on the Hub: what goes out, what is checked before, and how it gets there.

One idea: everything is first put together in a folder (which `--dry_run` keeps), then checked as a whole, then sent as
one commit a repository. Nothing that isn't in that folder ever leaves.
"""
