"""`avatarforge customers`: whose photos a server has."""

import json
from itertools import islice
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.options import ApiKeyOption, JsonOption, UrlOption, YesOption
from avatarforge.cli.terminal import Exit, confirmed, err, errors_in_one_sentence, out

app = typer.Typer(help="Whose photos there are.", no_args_is_help=True)

CustomerArgument = Annotated[str, typer.Argument(help="The customer's id.")]


@app.command("list")
@errors_in_one_sentence
def list_customers(
    limit: Annotated[int, typer.Option(min=1, help="Most customers.")] = 50,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List customers in the order of their ids."""
    from avatarforge.cli.connecting import connected
    from avatarforge.cli.jobs import state_of

    with connected(url, api_key) as client:
        found = list(islice(client.customers(), limit + 1))
    shown = found[:limit]
    if as_json:
        out.print_json(json.dumps([json.loads(each.json_bytes()) for each in shown]))
        return
    if not shown:
        err.print("There are no customers yet.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Customer", overflow="fold")
    table.add_column("Photos", justify="right", no_wrap=True)
    table.add_column("Latest", no_wrap=True)
    for each in shown:
        latest = "" if each.latest_photo is None else state_of(each.latest_photo)
        table.add_row(escape(each.customer_id), str(each.photo_count), latest)
    out.print(table)
    if len(found) > limit:
        err.print(f"There are more than {limit}; --limit shows more.")


@app.command("show")
@errors_in_one_sentence
def show_customer(
    customer: CustomerArgument,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a customer with the newest jobs."""
    from avatarforge.cli.connecting import connected
    from avatarforge.cli.jobs import show_list

    with connected(url, api_key) as client:
        found = client.customer(customer)
    if as_json:
        out.print_json(found.json_bytes().decode())
        return
    jobs = f"{found.photo_count} job{'s' * (found.photo_count != 1)}"
    out.print(f"{escape(found.customer_id)}: {jobs}, since {found.created_at:%Y-%m-%d}", highlight=False)
    if found.photos:
        show_list(list(found.photos), with_customer=False)


@app.command("erase")
@errors_in_one_sentence
def erase_customer(
    customer: CustomerArgument,
    yes: YesOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a customer with every job and every picture, for good."""
    from avatarforge.cli.connecting import connected

    with connected(url, api_key) as client:
        count = client.customer(customer).photo_count
        if not confirmed(f"Erase customer {customer} with {count} jobs and their pictures?", yes):
            raise typer.Exit(Exit.FAILURE)
        client.erase_customer(customer)
    erased: dict[str, Any] = {"customerId": customer, "jobs": count, "erased": True}
    if as_json:
        out.print_json(json.dumps(erased))
    else:
        err.print(f"Customer {customer} is erased, with {count} jobs.", highlight=False)
