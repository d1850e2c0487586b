"""Callback URLs and addresses: what a webhook may go to, however it is spelled."""

import threading
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from avatarforge.domain.errors import InvalidRequest
from avatarforge.settings import WebhookSettings
from avatarforge.webhooks.address_policy import check_callback_url, is_public
from avatarforge.webhooks.resolver import ResolutionFailed, Resolver
from avatarforge.webhooks.signing import new_secret
from avatarforge.webhooks.urls import CallbackUrl, UnusableUrl

SETTINGS = WebhookSettings(secrets=new_secret())  # type: ignore[arg-type]  # pydantic wraps it


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:0:127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::8.8.8.8",
        "100::1",
        "2001::1",
        "2001:0:808:808:0:0:f5ff:fffe",  # Teredo of the client 10.0.0.1
        "2001:0:7f00:1:0:0:f7f7:f7f7",  # Teredo over the server 127.0.0.1
        "2001:2::1",
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
        "3fff::1",
        "4000::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
    ],
)
def test_an_address_outside_the_public_internet_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "11.0.0.1",
        "100.63.255.255",
        "100.128.0.1",
        "168.63.129.17",
        "172.32.0.1",
        "223.255.255.254",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
        "2001:0:808:808:0:0:f7f7:f7f7",  # Teredo of 8.8.8.8 over 8.8.8.8
    ],
)
def test_an_address_of_the_public_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


# --- grammar ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("https://example.org", ("https", "example.org", 443, "/", "example.org")),
        ("http://Example.ORG:81/a/b?c=%20d#e", ("http", "example.org", 81, "/a/b?c=%20d", "example.org:81")),
        ("HTTPS://example.org.:443?x", ("https", "example.org.", 443, "/?x", "example.org.")),
        ("http://[2001:DB8::1]:81/", ("http", "2001:db8::1", 81, "/", "[2001:db8::1]:81")),
        ("http://a_b.internal:/", ("http", "a_b.internal", 80, "/", "a_b.internal")),
    ],
)  # fmt: skip
def test_a_callback_url_is_taken_apart(text: str, parts: tuple[object, ...]) -> None:
    url = CallbackUrl.parse(text)

    assert (url.scheme, url.host, url.port, url.target, url.authority) == parts


@pytest.mark.parametrize(
    "text",
    [
        "example.org/hook",
        "//example.org/",
        "https:example.org",
        "https:///hook",
        "file:///etc/passwd",
        "ftp://example.org/",
        "gopher://127.0.0.1:6379/_x",
        "javascript:alert(1)",
        "http://user@example.org/",
        "http://user:password@example.org/",
        "http://@example.org/",
        "http://example.org\\@127.0.0.1/",
        "http://example.org:0/",
        "http://example.org:65536/",
        "http://example.org:+80/",
        "http://example.org:80a/",
        "http://a..b/",
        "http://.a/",
        "http://" + "a" * 64 + ".org/",
        "http://" + "a." * 127 + "org/",
        "http://exa mple.org/",
        "http://exämple.org/",
        "http://example.org/\r\nx-injected: 1",
        "http://example%2eorg/",
        "http://<host>/",
        "http://[::1/",
        "http://[::1]x/",
        "http://[1.2.3.4]/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.x]/",
        "http://::1/",
    ],
)
def test_what_is_no_callback_url_is_refused(text: str) -> None:
    with pytest.raises(UnusableUrl):
        CallbackUrl.parse(text)


# --- acceptance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "leads_to"),
    [
        ("http://127.0.0.1/", "127.0.0.1"),
        ("http://127.1:8000/", "127.0.0.1"),
        ("http://2130706433/", "127.0.0.1"),
        ("http://0x7f000001/", "127.0.0.1"),
        ("http://0x7f.1/", "127.0.0.1"),
        ("http://0177.0.0.1/", "127.0.0.1"),
        ("http://0/", "0.0.0.0"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        ("http://0xa9fea9fe/", "169.254.169.254"),
        ("https://[::1]/", "::1"),
        ("http://[::ffff:7f00:1]/", "::ffff:7f00:1"),
        ("http://[64:ff9b::7f00:1]/", "64:ff9b::7f00:1"),
        ("http://[fd00:ec2::254]/", "fd00:ec2::254"),
        ("http://10.0.0.5:6379/", "10.0.0.5"),
    ],
)
async def test_a_url_that_leads_into_a_private_network_is_refused(url: str, leads_to: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        await check_callback_url(url, SETTINGS)

    assert (refusal.value.name, refusal.value.value) == ("callbackUrl", url)
    assert refusal.value.expected.endswith(f"leads to {leads_to}")


async def test_localhost_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"localhost leads to (127\.0\.0\.1|::1)"):
        await check_callback_url("http://localhost/", SETTINGS)


async def test_a_public_url_is_accepted() -> None:
    await check_callback_url("https://8.8.8.8/hook", SETTINGS)
    await check_callback_url("https://[2606:4700::1111]/hook", SETTINGS)


async def test_a_name_is_refused_when_one_of_its_addresses_is_private() -> None:
    resolver = Resolver(lambda host: ["8.8.8.8", "2606:4700::1111", "10.1.2.3"])

    with pytest.raises(InvalidRequest, match=r"evil\.example leads to 10\.1\.2\.3"):
        await check_callback_url("https://evil.example/", SETTINGS, resolver)


@pytest.mark.parametrize("error", [OSError(-2, "Name or service not known"), UnicodeError("label too long")])
async def test_a_name_without_an_address_at_present_is_accepted(error: Exception) -> None:
    def resolve(host: str) -> Sequence[str]:
        raise error

    await check_callback_url("https://not-yet.example/", SETTINGS, Resolver(resolve))


async def test_a_private_url_is_accepted_where_that_is_allowed() -> None:
    await check_callback_url("http://127.0.0.1:9/", SETTINGS.model_copy(update={"allow_private": True}))


async def test_credentials_are_refused_even_where_private_addresses_are_allowed() -> None:
    with pytest.raises(InvalidRequest, match="without a user name and password"):
        await check_callback_url(
            "http://ana:secret@127.0.0.1/", SETTINGS.model_copy(update={"allow_private": True})
        )


async def test_without_a_secret_the_refusal_says_what_is_missing() -> None:
    with pytest.raises(InvalidRequest, match=r"not set up here .*AVATARFORGE_WEBHOOK_SECRETS"):
        await check_callback_url("https://8.8.8.8/", WebhookSettings())


# --- names --------------------------------------------------------------------------------------------


async def test_a_name_server_that_does_not_answer_is_not_waited_for() -> None:
    answer = threading.Event()
    asked: list[str] = []

    def resolve(host: str) -> Sequence[str]:
        asked.append(host)
        answer.wait(10)
        return ["8.8.8.8"]

    resolver = Resolver(resolve)
    try:
        for _ in range(3):
            with pytest.raises(ResolutionFailed, match=r"no answer within 0\.05 s"):
                await resolver.resolve("slow.example", 0.05)
        assert asked == ["slow.example"], "those who ask meanwhile share one look-up"
    finally:
        answer.set()


async def test_a_dead_name_server_of_one_host_does_not_hold_up_another() -> None:
    answer = threading.Event()

    def resolve(host: str) -> Sequence[str]:
        if host == "slow.example":
            answer.wait(10)
        return ["8.8.8.8"]

    resolver = Resolver(resolve)
    try:
        with pytest.raises(ResolutionFailed):
            await resolver.resolve("slow.example", 0.01)
        assert await resolver.resolve("quick.example", 5) == [ip_address("8.8.8.8")]
    finally:
        answer.set()


async def test_look_ups_at_a_time_are_bounded() -> None:
    answer = threading.Event()
    resolver = Resolver(lambda host: (answer.wait(10), ["8.8.8.8"])[1])
    resolver.MAX_LOOKUPS = 2
    try:
        for host in ("a.example", "b.example"):
            with pytest.raises(ResolutionFailed, match="no answer"):
                await resolver.resolve(host, 0.01)
        with pytest.raises(ResolutionFailed, match="too many"):
            await resolver.resolve("c.example", 5)
    finally:
        answer.set()
