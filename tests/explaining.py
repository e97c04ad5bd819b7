"""A database that keeps the plan of each statement as it was carried out, for tests of what statements cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import stack

from batchline.store.postgres import Database, Transaction

Plan = dict[str, Any]


class Explaining(Database):
    """Answers as the real one; nothing stays of what was done. Plans are made as for connections of the store."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url
        self.plans: list[Plan] = []

    def _once(self, sql: str, params: Any, *, prepare: bool) -> list[tuple[Any, ...]]:
        def work(transaction: Transaction) -> list[tuple[Any, ...]]:
            return transaction.run(sql, params)

        return self._transacted(work)

    def _transacted(self, work: Any) -> Any:
        explain = self._explain

        class Explained(Transaction):
            def run(self, sql: str, params: Any = None) -> list[tuple[Any, ...]]:
                explain(self._cursor, sql, params)
                return super().run(sql, params)

        with stack.connected(self.url) as connection, connection.cursor() as cursor:
            cursor.execute("SET jit = off; SET enable_seqscan = off; BEGIN")
            try:
                return work(Explained(cursor, self._patience))
            finally:
                self._patience.end(connection)
                cursor.execute("ROLLBACK")

    def _explain(self, cursor: Any, sql: str, params: Any) -> None:
        if sql.startswith("SET"):
            return
        cursor.execute("SAVEPOINT before")
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, params)
        self.plans.append(cursor.fetchall()[0][0][0]["Plan"])
        cursor.execute("ROLLBACK TO before")

    def scanned(self) -> set[str]:
        """Tables that were read from end to end."""
        found = (n for plan in self.plans for n in nodes(plan) if n["Node Type"] == "Seq Scan" and n["Actual Loops"])
        return {n["Relation Name"] for n in found}

    def pages(self) -> int:
        """Pages touched by all statements."""
        return sum(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] for plan in self.plans)


def nodes(plan: Plan) -> Iterator[Plan]:
    """A plan's nodes, the root first."""
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
