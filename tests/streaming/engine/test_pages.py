"""No page is lost, none is held twice, and a sequence left alone stays one run."""

from __future__ import annotations

import random

import pytest

from streaming.engine.pages import IntegrityError, OutOfPages, PagePool, PrefixCache


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_operations_conserve_pages(seed: int) -> None:
    rng, pool = random.Random(seed), PagePool(97)
    held: list[list[int]] = []
    for _ in range(10_000):
        kind = rng.choice(("new", "grow", "share", "cut", "release"))
        try:
            if kind == "new":
                held.append(pool.allocate(rng.randrange(1, 12)))
            elif held:
                pages = rng.choice(held)
                if kind == "grow" and pages:
                    pages += pool.allocate(rng.randrange(1, 4), pages[-1])
                elif kind == "share":
                    pool.share(pages)
                    held.append(list(pages))
                elif kind == "cut":
                    keep = rng.randrange(len(pages) + 1)
                    pool.release(pages[keep:])
                    del pages[keep:]
                elif kind == "release":
                    held.remove(pages)
                    pool.release(pages)
        except OutOfPages:
            pass
        assert pool.num_free == 97 - len({p for pages in held for p in pages})
    pool.check_integrity(held)
    for pages in held:
        pool.release(pages)
    assert pool.num_free == 97


def test_growing_sequences_stay_runs_while_there_is_room() -> None:
    pool = PagePool(256)
    sequences = [pool.allocate(2) for _ in range(4)]
    for _ in range(20):
        for pages in sequences:
            pages += pool.allocate(1, pages[-1])
    assert all(p == list(range(p[0], p[0] + 22)) for p in sequences)


def test_a_page_counted_wrongly_is_noticed() -> None:
    pool = PagePool(4)
    pages = pool.allocate(2)
    with pytest.raises(IntegrityError):
        pool.check_integrity([pages, pages])
    with pytest.raises(IntegrityError):
        pool.release([*pages, pages[0]])


def test_a_prefix_outlives_who_computed_it_and_goes_when_evicted() -> None:
    pool = PagePool(8)
    cache = PrefixCache(pool, page_size=4)
    ids = tuple(range(10))
    pages = pool.allocate(3)
    cache.insert(ids, pages)
    pool.release(pages)
    found = cache.lookup(ids)
    assert found == pages[:2]
    assert cache.lookup((*ids[:9], 99)) == found  # the last token is never part of it
    assert cache.lookup((5, *ids[1:])) == []
    pool.check_integrity([found, found, *cache.held()])
    pool.release(found + found)
    assert cache.evict()
    assert pool.num_free == 8
