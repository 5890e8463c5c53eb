"""Promises of content ids: they are what they were on every disk, and tell no owner what another has said."""

from holdfast.engine.state.content_ids import Chain, Roll

PAGE = 4
IDS = list(range(1, 12))
PUBLIC = tuple(IDS[:6])


def ids_of(chain: Chain, ids: list[int] = IDS) -> list[bytes]:
    """Of all pages and of the tails at every position."""
    tails = [chain.tail_id(ids, position) for position in range(1, len(ids) + 1)]
    return [*chain.page_ids, *tails]


def test_ids_of_the_only_owner_are_those_of_older_builds() -> None:
    chain = Chain(b"layout", PAGE, public=PUBLIC)
    chain.rolls.append(Roll(9, 8, 4))
    ids = ids_of(chain)
    assert ids[1].hex() == "3f65bd18f5aa66c5815dcb918b6432e1" and ids[-1].hex() == "3b1313f1b211be93258e84d191636428"


def test_owners_share_the_public_beginning_and_nothing_else() -> None:
    ann, bob, only = (ids_of(Chain(b"layout", PAGE, owner, PUBLIC)) for owner in ("ann", "bob", ""))
    shared = [place for place, (one, other) in enumerate(zip(ann, bob, strict=True)) if one == other]
    num_pages = len(IDS) // PAGE
    assert shared == [0, *(num_pages + position - 1 for position in range(1, len(PUBLIC) + 1))]
    assert [ann[place] for place in shared] == [only[place] for place in shared]
    assert not set(ann[1:]) & set(only[1:]) - {only[place] for place in shared}


def test_what_only_begins_like_the_public_part_is_not_public() -> None:
    other = [*IDS[:3], 99, *IDS[4:]]
    ann, bob = (ids_of(Chain(b"layout", PAGE, owner, PUBLIC), other) for owner in ("ann", "bob"))
    assert ann[0] != bob[0] and ann[-1] != bob[-1]
    num_pages = len(other) // PAGE
    assert ann[num_pages : num_pages + 3] == bob[num_pages : num_pages + 3]  # tails of the first three tokens


def test_an_owner_finds_what_is_theirs() -> None:
    assert ids_of(Chain(b"layout", PAGE, "ann", PUBLIC)) == ids_of(Chain(b"layout", PAGE, "ann", PUBLIC))
