"""Several sources of news as one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def merge(*sources: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """What any of them yields, as it comes. Raises the first error of any; ends them all."""
    news: asyncio.Queue[T | Exception] = asyncio.Queue()

    async def pass_on(source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source) as items:
                async for item in items:
                    news.put_nowait(item)
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            news.put_nowait(error)

    tasks = [asyncio.create_task(pass_on(source)) for source in sources]
    try:
        while True:
            found = await news.get()
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
