import asyncio
import threading

import numpy as np
import pytest

from deploy.bundle.runtime import Predictions
from deploy.errors import UserError
from deploy.serve.batcher import Batcher
from deploy.serve.refused import RefusedError


class Model:
    """Answers a sample with itself; waits to be let go, and notes the size of every run."""

    def __init__(self):
        self.runs = []
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, samples):
        self.runs.append(len(samples))
        self.begun.release()
        assert self.go.acquire(timeout=20)
        if (samples == 13).any():
            raise UserError("13 is no sample")
        if (samples == 99).any():
            raise ZeroDivisionError
        return Predictions(samples, ("a", "b"), logits=False)


def ones(count, value=1.0):
    return np.full((count, 2), value)


def with_batcher(test, model, **settings):
    """Run a coroutine with a batcher whose first run, of one sample, holds up the others."""

    async def run():
        batcher = Batcher(model, **{"max_batch": 8, "most_waiting": 10, **settings})
        first = batcher.submit(ones(1, 0.5), deadline_s=20)
        await asyncio.to_thread(model.begun.acquire)
        try:
            await test(batcher)
        finally:
            for _ in range(50):
                model.go.release()
            assert (await first).scores.tolist() == [[0.5, 0.5]]
            await batcher.close()
        assert batcher.waiting == 0

    asyncio.run(run())


def let_go(model, runs=20):
    for _ in range(runs):
        model.go.release()


def test_what_waits_is_run_together_and_everyone_gets_their_own():
    model = Model()

    async def test(batcher):
        asked = [batcher.submit(ones(n, n), deadline_s=20) for n in (1, 2, 3)]
        let_go(model)
        for n, found in zip((1, 2, 3), await asyncio.gather(*asked), strict=True):
            np.testing.assert_array_equal(found.scores, ones(n, n))

    with_batcher(test, model)
    assert model.runs == [1, 6]


def test_a_run_takes_no_more_than_it_may_and_keeps_the_order():
    model = Model()

    async def test(batcher):
        asked = [batcher.submit(ones(n), deadline_s=20) for n in (5, 3, 1, 20, 1)]
        let_go(model)
        await asyncio.gather(*asked)

    with_batcher(test, model)
    assert model.runs == [1, 8, 1, 20, 1]


def test_without_merging_each_request_is_a_run():
    model = Model()

    async def test(batcher):
        asked = [batcher.submit(ones(n), deadline_s=20) for n in (1, 1, 2)]
        let_go(model)
        await asyncio.gather(*asked)

    with_batcher(test, model, max_batch=1)
    assert model.runs == [1, 1, 1, 2]


@pytest.mark.parametrize(("value", "error"), [(13, RefusedError), (99, ZeroDivisionError)])
def test_one_wrong_request_does_not_spoil_those_beside_it(value, error):
    model = Model()

    async def test(batcher):
        asked = [batcher.submit(ones(1, v), deadline_s=20) for v in (2, value, 3)]
        let_go(model)
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [found[0].scores[0, 0], found[2].scores[0, 0]] == [2, 3]
        assert isinstance(found[1], error)

    with_batcher(test, model)


def test_a_full_queue_refuses_the_next_and_takes_again_later():
    model = Model()

    async def test(batcher):
        asked = [batcher.submit(ones(1), deadline_s=20) for _ in range(2)]
        with pytest.raises(RefusedError, match="3 requests are waiting") as caught:
            batcher.submit(ones(1), deadline_s=20)
        assert caught.value.status == 503
        let_go(model)
        await asyncio.gather(*asked)
        await batcher.submit(ones(1), deadline_s=20)

    with_batcher(test, model, most_waiting=3)


def test_who_waited_too_long_is_refused_and_not_run():
    model = Model()

    async def test(batcher):
        late = batcher.submit(ones(4), deadline_s=0.01)
        patient = batcher.submit(ones(2), deadline_s=20)
        with pytest.raises(RefusedError, match="waited 10 ms") as caught:
            await late
        assert caught.value.status == 503
        assert batcher.waiting == 2
        let_go(model)
        await patient

    with_batcher(test, model)
    assert model.runs == [1, 2]


def test_a_client_that_left_harms_nobody():
    model = Model()

    async def test(batcher):
        gone, here = (batcher.submit(ones(1), deadline_s=20) for _ in range(2))
        gone.cancel()
        let_go(model)
        await here

    with_batcher(test, model)


def test_closing_answers_what_was_accepted():
    model = Model()

    async def run():
        batcher = Batcher(model, max_batch=2, most_waiting=10)
        asked = [batcher.submit(ones(1, v), deadline_s=20) for v in range(6)]
        let_go(model)
        await batcher.close()
        found = await asyncio.gather(*asked)
        assert [answer.scores[0, 0] for answer in found] == list(range(6))

    asyncio.run(run())
