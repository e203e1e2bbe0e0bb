"""Step 3: artifacts become PostgreSQL tables, which can always be dropped and derived again.

What belongs here: SQL, the tables people read, the bookkeeping that says which artifact each
batch's rows come from, and the proof that a table equals the archive. Not here: what an artifact
is (`archive`), when a table is built (`orchestration`).

Read the folders from the bottom up. `catalog` is what PostgreSQL has: `ddl` says what a table looks
like, `generation` which real table the view shows, `dependents` what users built on it. `rows`
turns an artifact's rows into a generation's (`evolve`, `upcast`) and puts a batch in (`prepare`,
`replace`). `proof` compares a table with the archive. `switch` makes a complete generation the one
that is read (`finalize`, `switch`). On top: `load` and `rebuild` fill a table, `preview` says what
they would do, `rollback` goes back, `retire` drops what is no longer declared.
"""
