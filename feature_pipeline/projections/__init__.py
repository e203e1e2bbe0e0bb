"""Step 3: artifacts become PostgreSQL tables, which can always be dropped and derived again.

What belongs here: SQL, the tables people read, the bookkeeping that says which artifact each
batch's rows come from, and the proof that a table equals the archive. Not here: what an artifact
is (`archive`), when a table is built (`orchestration`).

A table is read in this order: `table_schema` (what it looks like), `generation` (which real table
the view shows), `view` (the view itself), `evolve` and `upcast` (an artifact's columns become a
generation's), `prepare`, `copy_format` and `replace` (a batch goes in), `load` (all of them),
`settle` (a complete generation is indexed, proven and read), `switch` and `dependents` (the view
changes, and all on it stays).
Beside it: `proof`, `proven`, `progress`, `plan`, `rebuild`, `rollback`.
"""
