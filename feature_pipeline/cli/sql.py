"""`feature-pipeline sql`: one statement, its rows as a table. No psql is needed."""

import click
import psycopg

from feature_pipeline import settings
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project
from feature_pipeline.errors import InvalidInputError, ProjectionError

MAX_ROWS = 1_000


@click.command()
@click.argument("statement")
@click.option("--max-rows", default=MAX_ROWS, show_default=True, help="Rows to print.")
@json_option
def sql(statement: str, max_rows: int, as_json: bool) -> None:
    """Run STATEMENT, read only, and print its rows.

    Tables are in the schema `features`, which is searched first: select * from pockets limit 5
    """
    Project.find().load_environment()
    output = Output(as_json)
    try:
        with psycopg.connect(settings.database_url(), connect_timeout=5) as connection:
            connection.read_only = True
            connection.execute("set search_path = features, public")
            cursor = connection.execute(statement.encode())
            if cursor.description is None:
                raise InvalidInputError("the statement returns no rows")
            columns = [column.name for column in cursor.description]
            rows = cursor.fetchmany(max_rows)
            rest = cursor.rowcount - len(rows)
    except psycopg.OperationalError as error:
        raise ProjectionError(
            f"the tables' database cannot be reached: {str(error).strip()};"
            " is `feature-pipeline dev` running?"
        ) from error
    except psycopg.Error as error:
        raise InvalidInputError(f"{type(error).__name__}: {str(error).strip()}") from error
    output.table("", columns, rows)
    output.say(f"{len(rows)} rows" + (f", {rest} more not shown" if rest else ""))
    output.result({"columns": columns, "rows": [list(row) for row in rows], "more": rest})
