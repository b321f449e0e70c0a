"""`timm-stn app` in a headless Chromium: of make_app_picture.py and of tests/app/test_browser.py. Needs selenium."""
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--hide-scrollbars',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--force-color-profile=srgb')
PATIENCE = 30  # seconds


def missing() -> str:
    """What of a browser and its driver is not installed; empty if all is there."""
    return ', '.join(name for name in ('chromium', 'chromedriver') if shutil.which(name) is None)


def any_port() -> int:
    """One that nobody uses: several of these may run side by side."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return int(free.getsockname()[1])


class App:
    """The command in a process of its own, on a port of its own."""

    def __init__(self, *argv: str) -> None:
        env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUNBUFFERED': '1'}
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'timm_stn', 'app', '--port', str(any_port()), *argv], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        self.url = self._address()

    def _address(self) -> str:
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=lambda: lines.put(self.process.stdout.readline()), daemon=True).start()
        try:
            found = re.search(r'http://\S+', lines.get(timeout=PATIENCE))
        except queue.Empty:
            found = None
        if found is None:
            self.process.kill()
            raise RuntimeError(f'timm-stn app did not start: {self.process.communicate()[1]}')
        return found[0]

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C: (exit status, what was on stderr)."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said


@contextmanager
def app(*argv: str) -> Iterator[App]:
    running = App(*argv)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.communicate()


@contextmanager
def browser(width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A selenium driver of a browser with a profile of its own, which keeps a log of all requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    with TemporaryDirectory(prefix='timm-stn-chromium-') as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which('chromium')
        for flag in (*FLAGS, f'--user-data-dir={profile}', f'--window-size={width},{height}'):
            options.add_argument(flag)
        options.set_capability('goog:loggingPrefs', {'performance': 'ALL', 'browser': 'ALL'})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which('chromedriver')))
        try:
            yield driver
        finally:
            driver.quit()


def requests(driver: Any) -> list[str]:
    """Addresses of all that the browser asked for since the last call."""
    messages = (json.loads(entry['message'])['message'] for entry in driver.get_log('performance'))
    return [m['params']['request']['url'] for m in messages if m['method'] == 'Network.requestWillBeSent']


def until(found: Callable[[], Any], what: str) -> Any:
    """The first value of `found` that is true."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            value = found()
        except (NoSuchElementException, StaleElementReferenceException):  # the page is changing
            value = None
        if value:
            return value
        time.sleep(0.01)
    raise TimeoutError(f'waited {PATIENCE} s for {what}')


def result(driver: Any) -> tuple[list[str], list[str]] | None:
    """What the page shows: sources of pictures, rows of answers; None while there is nothing."""
    pictures, rows = driver.execute_script('''
        const of = (what, read) => [...document.querySelectorAll(what)].map(read);
        return [of('#pictures img', e => e.src), of('#answers tr', e => e.innerText.replace(/\\s+/g, ' ').trim())];''')
    return (pictures, rows) if pictures else None


def move(driver: Any, slider: str, value: float) -> None:
    """Set a slider, by its id, as a hand that moves it."""
    driver.execute_script('''
        const slider = document.querySelector(`#${arguments[0]} input[type=range]`);
        slider.value = arguments[1];
        slider.dispatchEvent(new Event('input', {bubbles: true}));''', slider, value)


def upload(driver: Any, file: Path) -> None:
    """Take away the picture of the page, and give it another."""
    driver.execute_script('document.querySelector("#file button[aria-label=Clear]")?.click()')
    until(lambda: driver.find_elements('css selector', '#file input[type=file]'), 'the place for a file')
    driver.find_element('css selector', '#file input[type=file]').send_keys(str(file))


def choose(driver: Any, network: str) -> None:
    """Choose a network by its name."""
    driver.find_element('css selector', '#network input').click()
    until(lambda: [o for o in driver.find_elements('css selector', '[role=option]') if network in o.text],
          'the network in the list')[0].click()
