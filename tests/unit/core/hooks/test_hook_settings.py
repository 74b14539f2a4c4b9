"""What hooks.yml may hold."""

from __future__ import annotations

import pytest

from vff_qos.core.hooks.hook_settings import HookSettings, is_local, parse_hooks
from vff_qos.errors import ConfigError

TOKEN = "token: 0123456789abcdef\n"
USERS = "users_file: /etc/vff-qos/hooks-users.yml\n"


def parse(text: str) -> HookSettings:
    return parse_hooks(text.encode(), "hooks.yml")


def test_the_least_that_is_needed() -> None:
    found = parse(TOKEN + USERS)
    assert (found.listen, found.flows) == ("127.0.0.1:8014", "unix:/run/vff-qos-flows.sock")
    assert (found.auth_timeout_s, found.auth_cache_s) == (3, 86_400)
    # A unix socket is the kernel's to guard.
    assert parse("listen: unix:/run/hooks.sock\n" + USERS).token == ""
    assert parse(TOKEN + "auth_url: https://panel.example.com/a?b=c\nauth_cache: 90min\n") == (
        HookSettings(
            token="0123456789abcdef", auth_url="https://panel.example.com/a?b=c", auth_cache_s=5_400
        )
    )
    assert parse(TOKEN + USERS + "auth_cache: 0").auth_cache_s == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (USERS, "hooks.yml: token: is needed where listen is a port"),
        (TOKEN, "users_file: or auth_url is needed"),
        (TOKEN + USERS + "listen: 0.0.0.0:80", "listen: '0.0.0.0:80' is not"),
        (TOKEN + USERS + "listen: 127.0.0.1:0", "0 is not a port"),
        ("token: short\n" + USERS, "token: the value is not 16 to 256"),
        (TOKEN + "auth_url: http://panel.example.com/", "must begin with https://"),
        (TOKEN + "auth_url: ftp://x/", "auth_url: the value is not a URL"),
        (TOKEN + USERS + "auth_timeout_sec: 10", "10 is not a whole number from 1 to 8"),
        (TOKEN + USERS + "auth_cache: soon", "auth_cache: 'soon' is not 0 or a time"),
        (TOKEN + USERS + "auth_cache: true", "auth_cache: True is not 0 or a time"),
        (TOKEN + USERS + "auth_cache: -5", "auth_cache: -5 is not 0 or a time"),
        (TOKEN + USERS + "flows: /run/x", "flows: '/run/x' is not 'unix:/absolute/path'"),
        (TOKEN + USERS + "hysteria_stats_url: https://127.0.0.1:9/", "must begin with http://"),
        (TOKEN + USERS + "user_file: /x", "did you mean 'users_file'?"),
    ],
)
def test_what_is_wrong_is_named(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text)
    assert sentence in str(refused.value)
    assert "0123456789" not in str(refused.value)


def test_which_urls_stay_on_this_host() -> None:
    for url in ("", "http://127.0.0.1:9/x", "http://[::1]/", "https://localhost/"):
        assert is_local(url)
    for url in ("https://127.0.0.1.example.com/", "https://example.com"):
        assert not is_local(url)
