"""`timm-stn app` from end to end, in a headless Chromium."""
import base64
import importlib.util
from io import BytesIO

import app_browser
import numpy as np
import pytest
from app_browser import app, browser, choose, move, requests, result, until, upload
from makers import needs_weights
from PIL import Image, ImageColor

from timm_stn.app.serve import free_port
from timm_stn.view.draw import COLORS

lacking = app_browser.missing() or ', '.join(
    name for name in ('selenium', 'gradio') if importlib.util.find_spec(name) is None)
pytestmark = [
    needs_weights('stn_gtsrb'),
    pytest.mark.skipif(bool(lacking), reason=f'needs {lacking}'), pytest.mark.usefixtures('heeding_signals')]
RTS, SIGNS = 'stn_mnist_cnn_rts', 'stn_gtsrb'


@pytest.fixture
def driver():
    with browser() as driver:
        yield driver


def pixels(source):
    """Of a picture that lies in the page."""
    content = base64.b64decode(source.removeprefix('data:image/png;base64,'))
    return np.asarray(Image.open(BytesIO(content)).convert('RGB'))


def outlined(source):
    """Where a picture shows the outline."""
    return (pixels(source) == ImageColor.getrgb(COLORS[0])).all(-1)


def changed(driver, before, what):
    return until(lambda: (now := result(driver)) != before and now, what)


def test_from_start_to_ctrl_c(driver, photos):
    """It opens, a slider is moved, a picture uploaded, one refused, a digit drawn; all is local; it fits; it ends."""
    with app() as running:
        requests(driver)  # those of the browser's own first page
        driver.get(running.url)
        first = until(lambda: result(driver), 'the first answer')
        assert first[1][0].startswith('7 ') and len(first[1]) == 10 and len(first[0]) == 2

        move(driver, 'turn', 45)
        turned = changed(driver, first, 'the answer after a slider moved')
        assert turned[1] != first[1] and not np.array_equal(pixels(turned[0][0]), pixels(first[0][0]))
        before, after = outlined(first[0][0]), outlined(turned[0][0])
        assert before.sum() > 500 and after.sum() > 500 and (before != after).sum() > 500, 'the outline turns, too'

        driver.find_element('id', 'reset').click()
        changed(driver, turned, 'the undistorted answer')
        assert result(driver) == first

        choose(driver, SIGNS)
        signs = changed(driver, first, 'the answer of another network')
        upload(driver, photos / 'a.png')
        photo = changed(driver, signs, 'the answer for a picture')
        assert photo[1] and not np.array_equal(pixels(photo[0][0]), pixels(signs[0][0]))

        (photos / 'broken.png').write_text('not a picture')
        upload(driver, photos / 'broken.png')
        said = until(lambda: driver.find_elements('css selector', '#pictures [role=alert]'), 'a refusal')[0].text
        assert said.startswith('This file cannot be used: not an image of these formats')

        choose(driver, RTS)
        until(lambda: driver.find_element('id', 'source').is_displayed(), 'the choice of inputs')
        driver.find_elements('css selector', '#source input')[1].click()
        draw_a_bar(driver)
        drawn = until(lambda: result(driver), 'the answer for a drawing')
        assert drawn[1][0].startswith('1 ')

        asked = [address for address in requests(driver) if not address.startswith(('data:', 'blob:'))]
        assert len(asked) > 20 and [address for address in asked if not address.startswith(running.url)] == []
        errors = [entry['message'] for entry in driver.get_log('browser') if entry['level'] == 'SEVERE']
        assert errors == []

        check_narrow(driver)
        port = int(running.url.rstrip('/').rpartition(':')[2])
        assert running.interrupt() == (130, 'timm-stn: interrupted\n')
        assert free_port('127.0.0.1', port) == port


def check_narrow(driver):
    """A telephone's screen needs no scrolling to the side."""
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(
        width=400, height=900, deviceScaleFactor=1, mobile=True))
    assert driver.execute_script('return document.documentElement.scrollWidth') <= 400
    shown = [driver.find_element('id', name) for name in ('network', 'pictures', 'turn', 'answers')]
    assert all(part.is_displayed() and part.rect['width'] > 140 for part in shown)
    tops = [part.rect['y'] for part in shown]
    assert tops == sorted(tops), 'pictures are beside the sliders'


def draw_a_bar(driver):
    from selenium.webdriver import ActionChains
    until(lambda: driver.find_element('css selector', '#drawing canvas').is_displayed(), 'the canvas')
    canvas = driver.find_element('css selector', '#drawing canvas')
    hand = ActionChains(driver, duration=20).move_to_element_with_offset(canvas, 20, -90).click_and_hold()
    for _ in range(4):
        hand.move_by_offset(-10, 45)
    hand.release().perform()
