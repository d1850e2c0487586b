"""`avatarforge customers`: list, show and erase the customers of a server."""

import json
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.options import JsonOption, YesOption, client_command
from avatarforge.cli.terminal import ExitCode, confirm, err, out

if TYPE_CHECKING:
    from avatarforge.client import Client

app = typer.Typer(help="The customers of a server.", no_args_is_help=True)

CustomerArgument = Annotated[str, typer.Argument(help="The customer's id.")]


@app.command("list")
@client_command
def list_customers(
    client: "Client",
    limit: Annotated[int, typer.Option(min=1, help="Most customers.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List customers in the order of their ids."""
    from avatarforge.cli.jobs import format_state

    found = list(islice(client.list_customers(), limit + 1))
    customers = found[:limit]
    if as_json:
        out.print_json(data=[json.loads(each.json_bytes()) for each in customers])
        return
    if not customers:
        err.print("There are no customers yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Customer", overflow="fold")
    table.add_column("Photos", justify="right", no_wrap=True)
    table.add_column("Latest", no_wrap=True)
    for each in customers:
        latest = "" if each.latest_photo is None else format_state(each.latest_photo)
        table.add_row(escape(each.customer_id), str(each.photo_count), latest)
    out.print(table)
    if len(found) > limit:
        err.print(f"There are more than {limit}; --limit shows more.")


@app.command("show")
@client_command
def show_customer(client: "Client", customer: CustomerArgument, as_json: JsonOption = False) -> None:
    """Show a customer with the newest jobs."""
    from avatarforge.cli.jobs import print_jobs

    found = client.get_customer(customer)
    if as_json:
        out.print_json(found.json_bytes().decode())
        return
    jobs = f"{found.photo_count} job{'s' * (found.photo_count != 1)}"
    out.print(f"{escape(found.customer_id)}: {jobs}, since {found.created_at:%Y-%m-%d}", highlight=False)
    if found.photos:
        print_jobs(list(found.photos), with_customer=False)


@app.command("erase")
@client_command
def erase_customer(
    client: "Client", customer: CustomerArgument, yes: YesOption = False, as_json: JsonOption = False
) -> None:
    """Remove a customer with every job and every image, for good."""
    count = client.get_customer(customer).photo_count
    if not confirm(f"Erase customer {customer} with {count} jobs and their images?", yes):
        raise typer.Exit(ExitCode.FAILURE)
    client.erase_customer(customer)
    erased: dict[str, Any] = {"customerId": customer, "jobs": count, "erased": True}
    if as_json:
        out.print_json(data=erased)
    else:
        err.print(f"Customer {customer} is erased, with {count} jobs.", highlight=False)
