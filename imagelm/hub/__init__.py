"""Publishes a trained folder as repositories on the Hub.

One idea: everything is first put together in a folder (which `--dry_run` keeps), then checked as a whole, then sent as
one commit per repository. Only files in that folder are ever uploaded.
"""
