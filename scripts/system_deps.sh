#!/bin/sh
# What the tests of the windows need and pip cannot install: a virtual display, a hand on it, software OpenGL, a browser.
# Needs root and apt (Debian, Ubuntu); says so and ends well where it has neither, for those tests then skip.
set -eu
packages="xvfb xdotool libgl1 libgl1-mesa-dri chromium"
missing=""
for program in Xvfb xdotool chromium; do
    command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
if [ -z "$missing" ]; then
    echo "system-deps: Xvfb, xdotool and chromium are here"
    exit 0
fi
run=""
if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        run="sudo -n"
    else
        echo "system-deps: without$missing the tests of the windows skip; as root: apt-get install $packages"
        exit 0
    fi
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "system-deps: without$missing the tests of the windows skip; there is no apt-get here: install them another way"
    exit 0
fi
echo "system-deps: installing $packages ..."
if $run apt-get update -qq && DEBIAN_FRONTEND=noninteractive $run apt-get install -y -qq --no-install-recommends $packages >/dev/null; then
    echo "system-deps: done"
else
    echo "system-deps: apt-get failed; without$missing the tests of the windows skip"
fi
