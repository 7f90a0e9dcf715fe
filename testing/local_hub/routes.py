"""Every route of the Hub that the client uses, and its handler."""

from __future__ import annotations

from testing.local_hub import cards, discussions, extras, repos, tree, uploads
from testing.local_hub.app import Handler
from testing.local_hub.files import Files
from testing.local_hub.lfs import LargeFiles
from testing.local_hub.storage import Storage
from testing.local_hub.xet import Xet

REPO = "/{namespace}/{name}"
API = "/api/{kinds}" + REPO


def routes(storage: Storage, part_bytes: int) -> list[tuple[str, str, Handler]]:
    """All routes, in the order of matching."""
    files, large, xet = Files(storage), LargeFiles(storage, part_bytes), Xet(storage)
    table: list[tuple[str, str, Handler]] = [
        ("GET", "/api/whoami-v2", repos.whoami),
        ("POST", "/api/repos/create", repos.create),
        ("DELETE", "/api/repos/delete", repos.delete),
        ("POST", "/api/repos/move", repos.move),
        ("POST", "/api/validate-yaml", cards.validate_yaml),
        ("GET", "/api/{kinds}", repos.listing),
        ("GET", API, repos.info),
        ("GET", API + "/revision/{revision}", repos.info),
        ("PUT", API + "/settings", repos.settings),
        ("GET", API + "/auth-check", repos.auth_check),
        ("GET", API + "/auth-check/write", repos.auth_check_write),
        ("GET", API + "/refs", repos.refs),
        ("POST", API + "/branch/{branch}", repos.create_ref),
        ("DELETE", API + "/branch/{branch}", repos.delete_ref),
        ("POST", API + "/tag/{tagged}", repos.create_ref),
        ("DELETE", API + "/tag/{tagged}", repos.delete_ref),
        ("GET", API + "/commits/{revision}", tree.history),
        ("GET", API + "/tree/{revision}", tree.tree),
        ("GET", API + "/tree/{revision}/{path:path}", tree.tree),
        ("POST", API + "/paths-info/{revision}", tree.paths_info),
        ("POST", API + "/preupload/{revision}", uploads.preupload),
        ("POST", API + "/commit/{revision}", uploads.commit),
        ("GET", API + "/xet-write-token/{revision}", xet.write_token),
        ("GET", API + "/xet-read-token/{revision}", xet.read_token),
        ("GET", API + "/discussions", discussions.listing),
        ("POST", API + "/discussions", discussions.create),
        ("GET", API + "/discussions/{number}", discussions.details),
        ("POST", API + "/discussions/{number}/comment", discussions.comment),
        ("POST", API + "/discussions/{number}/status", discussions.status),
        ("POST", API + "/discussions/{number}/title", discussions.title),
        ("POST", API + "/discussions/{number}/merge", discussions.merge),
        ("POST", API + "/super-squash/{branch}", extras.squash),
        ("POST", API + "/lfs-files/duplicate", extras.take_over),
        ("GET", API + "/runtime", extras.runtime),
        ("GET|POST|DELETE", API + "/variables", extras.variables),
        ("GET|POST|DELETE", API + "/secrets", extras.variables),
        ("POST", API + "/hardware", extras.set_runtime),
        ("POST", API + "/pause", extras.set_runtime),
        ("POST", API + "/restart", extras.set_runtime),
        ("GET|HEAD", "/objects/{oid}", storage.get_object),
        ("PUT", "/lfs/{oid}/{key}", large.put),
        ("PUT", "/lfs/{oid}/{key}/{part}", large.put_part),
        ("POST", "/lfs/{oid}/{key}", large.complete),
        ("POST", "/xet/v1/xorbs/default/{hash}", xet.put_xorb),
        ("POST", "/xet/v1/shards", xet.put_shard),
        ("GET", "/xet/v1/chunks/{prefix}/{hash}", xet.find_chunk),
        ("GET", "/xet/v1/reconstructions/{hash}", xet.reconstruction),
        ("GET", "/xet/xorbs/{hash}", storage.get_xorb),
    ]
    for prefix in ("/{kinds}", ""):
        table += [
            ("POST", prefix + "/{namespace}/{name}.git/info/lfs/objects/batch", large.batch),
            ("POST", prefix + "/{namespace}/{name}.git/info/lfs/objects/verify", large.verify),
            ("GET|HEAD", prefix + REPO + "/resolve/{revision}/{path:path}", files.resolve),
            ("GET|HEAD", prefix + REPO + "/raw/{revision}/{path:path}", files.raw),
        ]
    return table
