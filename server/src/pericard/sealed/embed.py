"""The same sealed model with more grants in it: manifest, signatures, old grants and payload stay as they are."""

from __future__ import annotations

from pathlib import Path

from pericard import durable
from pericard.errors import BadGrant, NotWritten
from pericard.sealed import layout
from pericard.sealed.container import SealedModel
from pericard.sealed.seal import exists_already, require_new


def embed(source: SealedModel, packed: tuple[bytes, ...], path: Path) -> None:
    """Write a complete sealed model that holds the source's grants and these.

    Args:
        source: the model as it is; it stays open.
        packed: grants as ``VerifiedModel.grant`` made them.
        path: the new file; it never takes the place of one that is there.

    Raises:
        BadGrant: it would hold more grants than a writer embeds.
        CorruptPayload: the source became shorter meanwhile.
        NotWritten: the name is taken, or the file cannot be written; nothing is left of it.
    """
    require_new(path)
    kept = tuple(layout.pack_grant(body, signatures) for body, signatures in source.packed_grants)
    every = kept + packed
    if len(every) > layout.MAX_EMBEDDED or len(layout.pack_grants(every)) > layout.MAX_GRANTS:
        raise BadGrant(
            f"{source.subject}: would hold {len(every)} grants, at most {layout.MAX_EMBEDDED} are embedded",
            hint="write a grant file beside it instead: leave --embed out",
        )
    head = layout.pack_head(source.manifest_bytes, source.signatures, every)
    try:
        with durable.creating(path, mode=0o644) as out:
            out.write(head)
            out.flush()
            source.copy_payload(out.fileno())
    except FileExistsError as error:
        raise exists_already(path) from error
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written: {(error.strerror or 'i/o error').lower()}") from error
