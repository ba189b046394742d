#!/bin/sh
# Installs the Debian packages that the tests and benchmarks use, where this may be done (root, apt-get);
# elsewhere it names what is missing. Tests that need one of them say so themselves.
set -eu
missing=
have() { command -v "$1" >/dev/null 2>&1; }
have cc || missing="$missing gcc libc6-dev"
have hey || missing="$missing hey"
have chromium || have google-chrome || missing="$missing chromium"
have chromedriver || missing="$missing chromium-driver"
have curl || missing="$missing curl"
# promtool, from Debian's package of Prometheus, which would start a server if it were installed.
if ! have promtool && [ ! -x "$HOME/.cache/gpuscale-cluster/bin/promtool" ]; then
    if have apt-get && have dpkg-deb && [ "$(id -u)" = 0 ]; then
        folder=$(mktemp -d)
        (
            cd "$folder"
            apt-get update -qq
            apt-get download -qq prometheus
            dpkg-deb -x prometheus_*.deb .
        ) && install "$folder/usr/bin/promtool" /usr/local/bin/promtool
        rm -rf "$folder"
    else
        missing="$missing prometheus"
    fi
fi
[ -z "$missing" ] && exit 0
if have apt-get && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "not installed, and the tests that need them are skipped:$missing" >&2
fi
