"""Where the time of a step goes, of tiny networks."""
import pytest
import step_time
import timm
import torch


def rows(capsys, *arguments):
    step_time.main([*arguments])
    head, line, *rows = [[cell.strip() for cell in row.strip('|').split('|')]
                         for row in capsys.readouterr().out.splitlines()]
    assert set(line) == {'---'} and all(len(row) == len(head) for row in rows)
    return rows


def test_a_row_for_each_network_and_batch(capsys):
    found = rows(capsys, '--networks', 'mnist_cnn', 'test_vit', '--batches', '1', '2', '--rounds', '2', '1')
    assert [row[:2] for row in found] == [['mnist_cnn', '1'], ['mnist_cnn', '2'], ['test_vit', '1'], ['test_vit', '2']]
    for _, _, plain, twin, *shares in found:
        assert float(plain) > 0 and float(twin) > 0
        shares = [float(share.removesuffix(' %')) for share in shares]
        assert min(shares[:3]) > 0 and shares[-1] > 0


def test_the_parts_are_those_of_the_twin():
    twin = timm.create_model('stn_test_resnet').train()
    images = torch.randn(2, 3, 64, 64)
    conv, seen = step_time.first_convolution(twin, images)
    assert torch.equal(conv.weight, twin.backbone.conv1[0].weight) and seen.shape == images.shape
    for step in step_time.parts(twin, images).values():
        step()
    assert all(p.grad is None for p in twin.parameters())


def test_start_up(capsys):
    (row,) = rows(capsys, '--start-up', '--networks', 'mnist_cnn', '--rounds', '1')
    assert row[0] == 'mnist_cnn' and all(float(cell) > 0 for cell in row[1:])


@pytest.mark.parametrize('arguments', [['--rounds', '1', '2', '3'], ['--rounds', '0'], ['--batches', '0']])
def test_numbers_that_do_not_fit(capsys, arguments):
    with pytest.raises(SystemExit):
        step_time.main(arguments)
    assert '--rounds takes one positive number' in capsys.readouterr().err


def test_networks_that_are_none(capsys):
    with pytest.raises(SystemExit):
        step_time.main(['--networks', 'resnet18', 'stn_resnet18', 'nosuch'])
    assert 'that have a stn_ twin, got stn_resnet18 nosuch' in capsys.readouterr().err
