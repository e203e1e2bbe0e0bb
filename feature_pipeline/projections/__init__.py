"""Step 3: load artifacts into PostgreSQL tables, which can always be dropped and rebuilt.

What belongs here: SQL, the tables that users read, the bookkeeping of the artifact that each
batch's rows come from, and the proof that a table equals the archive. Not here: what an artifact is
(`archive`), when a table is built (`orchestration`).

Read the folders from the bottom up. `catalog` is the state of PostgreSQL: `ddl` defines a table's
form, `generation` the real table that the view shows, `dependents` the objects that users built on
it. `rows` converts an artifact's rows into a generation's (`evolve`, `upcast`) and loads a batch
(`prepare`, `replace`). `proof` compares a table with the archive. `switch` makes a complete
generation the one that is read (`finalize`, `switch`). On top, `load` and `rebuild` fill a table,
`preview` shows what they would do, `rollback` switches back, and `retire` drops what is no longer
declared.
"""
