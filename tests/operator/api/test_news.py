"""Those who wait for news of an identity are woken some at a time, and none is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from keyferry.model import ObjectKey
from keyferry_operator.api.news import AT_ONCE, News

if TYPE_CHECKING:
    from keyferry_operator.api.news import Waiter

KEY = ObjectKey("team", "nightly")
OTHER = ObjectKey("team", "daily")
LONG = 600.0


class Crowd:
    """Many who wait for the same, look when they are woken, and go on waiting."""

    def __init__(self, news: News, count: int) -> None:
        self.news = news
        self.looks: Counter[int] = Counter()
        self.order: list[int] = []
        self.looking = 0
        self.most = 0
        self.may_go_on = asyncio.Event()
        """Whoever looks waits for it: the token is being read."""
        self.may_go_on.set()
        self.tasks = [asyncio.create_task(self.wait(number)) for number in range(count)]

    async def wait(self, number: int) -> None:
        with self.news.waiting(KEY) as waiter:
            while await waiter.comes(LONG):
                self.order.append(number)
                self.looking += 1
                self.most = max(self.most, self.looking)
                await self.may_go_on.wait()
                self.looking -= 1
                self.looks[number] += 1

    async def until_waiting(self) -> None:
        await settled()
        assert self.news.count == len(self.tasks)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def settled() -> None:
    """Let everybody do what can be done now."""
    for _ in range(1000):
        await asyncio.sleep(0)


async def test_all_look_and_no_more_than_some_at_once() -> None:
    news = News()
    crowd = Crowd(news, 5 * AT_ONCE)
    await crowd.until_waiting()
    crowd.may_go_on.clear()
    news.tell(KEY)
    await settled()
    assert crowd.order == list(range(AT_ONCE)), "those who came first"
    crowd.may_go_on.set()
    await settled()
    assert crowd.looks == Counter(range(5 * AT_ONCE))
    assert crowd.most == AT_ONCE
    await crowd.end()
    assert not news.waits(KEY)
    assert news.count == 0


async def test_those_who_were_not_reached_come_before_those_who_were() -> None:
    news = News()
    crowd = Crowd(news, 2 * AT_ONCE)
    await crowd.until_waiting()
    crowd.may_go_on.clear()
    news.tell(KEY)
    await settled()
    news.tell(KEY)  # there is news for those who look just now, too
    crowd.may_go_on.set()
    await settled()
    first = list(range(AT_ONCE))
    assert set(crowd.order[AT_ONCE:]) == set(range(2 * AT_ONCE)), "the first looked once more"
    assert crowd.looks == Counter(range(2 * AT_ONCE)) + Counter(first)
    await crowd.end()


async def test_one_that_gives_up_while_it_looks_keeps_nobody_from_looking() -> None:
    news = News()
    crowd = Crowd(news, AT_ONCE + 1)
    await crowd.until_waiting()
    crowd.may_go_on.clear()
    news.tell(KEY)
    await settled()
    assert crowd.looking == AT_ONCE
    crowd.tasks[0].cancel()
    await settled()
    assert crowd.order[-1] == AT_ONCE
    await crowd.end()


async def test_whoever_is_busy_with_something_else_keeps_nobody_waiting() -> None:
    news = News()
    busy = [news.waiting(KEY) for _ in range(2 * AT_ONCE)]
    waiters: list[Waiter] = [each.__enter__() for each in busy]  # they look whether their pods are there
    crowd = Crowd(news, 3)
    await settled()
    news.tell(KEY)
    await settled()
    assert crowd.looks == Counter(range(3))
    assert all([await waiter.comes(LONG) for waiter in waiters]), "they hear of it as soon as they ask"
    for each in busy:
        each.__exit__(None, None, None)
    await crowd.end()


async def test_no_news_is_told_after_a_while_and_other_news_is_none() -> None:
    news = News()
    with news.waiting(KEY) as waiter:
        waiting = asyncio.create_task(waiter.comes(0.01))
        news.tell(OTHER)
        assert await waiting is False
        waiting = asyncio.create_task(waiter.comes(LONG))
        await settled()
        news.wake_all()
        assert await waiting is True
