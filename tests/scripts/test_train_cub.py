"""train_cub.sh and cub_job.sh: what they ask train.py for, and a tiny run of it, killed, resumed and published."""
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cub_weights
import numpy as np
import pytest
import timm
import torch
from hub_server import Hub, User
from makers import ROOT
from PIL import Image
from safetensors.torch import save_file

import timm_stn  # noqa: F401
from timm_stn.run import TIMM_SCRIPTS

TRAIN, JOB = ROOT / 'scripts' / 'train_cub.sh', ROOT / 'scripts' / 'cub_job.sh'
PAGE = (ROOT / 'docs' / 'birds.md').read_text()
OURS = ('stn_resnet50_cub', 'stn_resnet50_cub_paper')
needs_scripts = pytest.mark.skipif(not os.environ.get(TIMM_SCRIPTS), reason=f'{TIMM_SCRIPTS} names no checkout of timm')

STUB = '''#!/usr/bin/env bash
# a python that does nothing, and says what was asked of it
echo "$*" >>"$ASKED"
while (($#)); do
    case $1 in
        *cub_weights.py) [[ -z ${WRONG:-} ]] || { echo "$WRONG" >&2; exit 2; }; echo "${DIGEST:-4b}" /weights/$2 ;;
        --output) folder=$2/$4; [[ -z ${FAILS:-} ]] || exit 1; touch "$folder/last.pth.tar"
            printf 'epoch,eval_top1\\n4,1\\n' >>"$folder/summary.csv"; [[ -z ${CUT_OFF:-} ]] || exit 1 ;;
        *birds_result.py) printf '{\\n  "top1": 81.5,\\n  "top5": 95\\n}' >"$2/result.json" ;;
    esac
    shift
done
'''


def photographs(folder, size=(80, 96), each=2, names=('001.Red_bird', '002.Blue_bird')):
    """Two classes that their colour tells apart."""
    rng = np.random.default_rng(0)
    for split in ('train', 'test'):
        for name, color in zip(names, ((200, 60, 60), (60, 60, 200), (60, 200, 60))):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                pixels = rng.normal(color, 20, (*size, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f'{i}.jpg')
    return folder


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """`stub(*words)` runs train_cub.sh with a python that does nothing: exit status, what it said, what was asked."""
    data = photographs(tmp_path / 'data', each=1)
    for name, text in (('python', STUB), ('train.py', '')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    for option in ('WEIGHTS', 'RECIPE', 'EPOCHS', 'BATCH_SIZE', 'SIDE', 'SEED', 'DEVICE', 'NPROC', 'AMP', 'WORKERS',
                   'LOG'):
        monkeypatch.delenv(option, raising=False)

    def run(*words, data=data, **more):
        asked = tmp_path / 'asked'
        asked.write_text('')
        env = os.environ | dict(PYTHON=str(tmp_path / 'python'), TIMM_SCRIPTS=str(tmp_path), ASKED=str(asked)) | more
        done = subprocess.run([TRAIN, data, tmp_path / 'out', *words], env=env, capture_output=True, text=True)
        calls = [line for line in asked.read_text().splitlines() if 'train.py' in line]
        return done.returncode, done.stdout + done.stderr, calls
    return run


def test_all_runs_and_what_each_sees(stub, tmp_path):
    code, said, calls = stub('plain', 'plain_half', *OURS, 'SEED=3', 'WORKERS=7')
    assert code == 0, said
    seen = [(re.search(r'--model (\S+) --img-size (\d+) (.*?)--pretrained ', call).groups()) for call in calls]
    assert seen == [('resnet50', '448', ''), ('resnet50', '224', ''), (OURS[0], '448', ''), (OURS[1], '448', '')]
    for call in calls:
        assert call.startswith('-m timm_stn.run train.py ') and ' --num-classes 2 ' in call
        assert ' --pretrained --pretrained-path /weights/resnet50.tv_in1k ' in call and ' --seed 3 ' in call
        assert ' --device cuda --amp --amp-dtype bfloat16 --pin-mem -j 7 ' in call and ' --batch-size 32 ' in call
    assert {f.name for f in (tmp_path / 'out').glob('*/result.json')} == {'result.json'}
    folders = {f.name for f in (tmp_path / 'out').iterdir()}
    assert folders == {f'{n}-sgd-3' for n in ('plain', 'plain_half', *OURS)}


def test_the_short_list(stub):
    assert [re.search(r'--model (\S+)', call)[1] for call in stub()[2]] == ['resnet50', OURS[0]]


def test_another_side(stub):
    calls = stub('SIDE=96', 'plain_half', *OURS)[2]
    assert ' --model resnet50 --img-size 48 --pretrained ' in calls[0]
    assert ' --img-size 96 --model-kwargs stn_size=48 --pretrained ' in calls[1]
    assert ' --img-size 96 --model-kwargs stn_size=48 stn_localization_size=48 --pretrained ' in calls[2]


def test_recipes(stub):
    sgd, adamw = stub('plain')[2] + stub('plain', 'RECIPE=adamw')[2]
    assert ' --opt sgd ' in sgd and ' --epochs 100 ' in sgd and ' --warmup-epochs 5 ' in sgd
    assert ' --opt adamw ' in adamw and ' --layer-decay 0.85 ' in adamw and ' --epochs 60 ' in adamw


def test_several_gpus_share_the_batch(stub):
    call, = stub('NPROC=4', 'BATCH_SIZE=64', 'AMP=float16', 'plain')[2]
    assert call.startswith('-m torch.distributed.run --standalone --nproc-per-node 4 -m timm_stn.run train.py ')
    assert ' --batch-size 16 ' in call and ' --amp-dtype float16 ' in call


def test_without_a_gpu(stub):
    call, = stub('DEVICE=cpu', 'plain')[2]
    assert ' --device cpu -j 4 ' in call and '--amp' not in call and '--pin-mem' not in call
    code, said, calls = stub('DEVICE=cpu', 'NPROC=2', 'plain')  # train.py cannot
    assert (code, calls) == (2, []) and said == 'NPROC takes 1 with DEVICE=cpu, got 2\n'


def test_a_finished_run_is_skipped_and_one_that_was_cut_off_resumes(stub, tmp_path):
    code, _, calls = stub('plain', OURS[0], CUT_OFF='1')
    assert code == 1 and len(calls) == 1 and '--resume' not in calls[0]
    _, _, calls = stub('plain', OURS[0])
    assert f' --resume {tmp_path}/out/plain-sgd-0/last.pth.tar' in calls[0] and '--resume' not in calls[1]
    code, said, calls = stub('plain', OURS[0])
    assert (code, calls) == (0, []) and 'plain-sgd-0 is finished' in said and f'{OURS[0]}-sgd-0 is finished' in said
    assert len(stub('plain', 'SEED=1')[2]) == 1, 'another seed is another run'


def test_a_script_that_changes_while_it_runs_goes_on_as_it_was(stub, tmp_path, monkeypatch):
    """As an update of the checkout changes it; bash reads a script line by line."""
    shutil.copytree(TRAIN.parent, tmp_path / 'scripts', ignore=shutil.ignore_patterns('__pycache__'))
    monkeypatch.setitem(globals(), 'TRAIN', tmp_path / 'scripts' / TRAIN.name)
    stop = tmp_path / 'python'
    stop.write_text(stop.read_text().replace('touch "$folder', f'echo broken {"x" * 9999} >"{TRAIN}"; touch "$folder'))
    code, said, calls = stub('plain', OURS[0])
    assert (code, len(calls)) == (0, 2), said


def test_a_run_is_not_continued_by_other_options(stub, tmp_path):
    stub('plain', CUT_OFF='1')
    begun = 'plain-sgd-0 was begun with WEIGHTS=resnet50.tv_in1k (4b) EPOCHS=100 BATCH_SIZE=32 SIDE=448 AMP=bfloat16'
    for other in ('EPOCHS=50', 'AMP=float16', 'BATCH_SIZE=8'):
        code, said, calls = stub(other, OURS[0], 'plain')
        assert (code, calls, said.count('\n')) == (2, [], 1) and begun in said
    code, said, calls = stub('plain', DIGEST='5c')
    assert (code, calls) == (2, []) and 'not WEIGHTS=resnet50.tv_in1k (5c)' in said, 'another file of the same name'
    code, said, calls = stub('plain', data=photographs(tmp_path / 'more', names=('a', 'b', 'c')))
    assert (code, calls) == (2, []) and ', 3 classes; another OUTPUT keeps both' in said
    code, said, calls = stub('plain', 'WORKERS=1', 'NPROC=2', 'DEVICE=cuda', 'LOG=9', 'WEIGHTS=resnet50.a1_in1k')
    assert code == 0 and '--resume' in calls[0], 'these change nothing that is trained'


def test_a_start_that_failed_may_be_mended_with_other_options(stub, tmp_path):
    assert stub('plain', FAILS='1')[0] == 1 and (tmp_path / 'out' / 'plain-sgd-0' / 'options.txt').exists()
    code, said, calls = stub('plain', 'BATCH_SIZE=8')
    assert code == 0 and ' --batch-size 8 ' in calls[0] and '--resume' not in calls[0], said
    assert 'BATCH_SIZE=8' in (tmp_path / 'out' / 'plain-sgd-0' / 'options.txt').read_text()


@pytest.mark.skipif(shutil.which('flock') is None, reason='there is no flock')
def test_two_commands_do_not_train_in_one_folder(stub, tmp_path):
    (tmp_path / 'out' / 'plain-sgd-0').mkdir(parents=True)
    with (tmp_path / 'out' / 'plain-sgd-0' / 'lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, said, calls = stub('plain')
        assert (code, calls) == (2, []) and said == f'{tmp_path}/out/plain-sgd-0 is being trained by another command\n'
        assert len(stub('plain', 'SEED=1')[2]) == 1
    assert len(stub('plain')[2]) == 1


def test_options_alone_are_tried(stub, tmp_path):
    code, said, calls = stub('CHECK=1', OURS[0], data=tmp_path / 'nowhere', TIMM_SCRIPTS='')
    assert (code, said, calls) == (0, '', []) and not (tmp_path / 'out').exists()
    assert stub('CHECK=1', 'foo', data=tmp_path / 'nowhere')[0] == 2
    assert stub('CHECK=2')[:2] == (2, 'CHECK takes 0 or 1, got 2\n') and len(stub('CHECK=0', 'plain', 'SEED=9')[2]) == 1
    code, said, _ = stub('CHECK=1', WRONG='WEIGHTS=resnet50.tv_in1k: no')
    assert (code, said) == (2, 'WEIGHTS=resnet50.tv_in1k: no\n')


def test_at_its_end_a_run_tells_what_came_of_it_and_what_to_do(stub, tmp_path):
    told = stub(*OURS[:1], 'plain')[1].splitlines()
    run = tmp_path / 'out' / f'{OURS[0]}-sgd-0'
    assert told[0] == f'{run}/result.json: top-1 81.5 %'
    assert told[1] == f'  timm-stn show {tmp_path}/data/test --checkpoint {run}/last.pth.tar --output look.png'
    assert told[2] == f'  timm-stn push {run}/last.pth.tar --repo USER/{OURS[0]} --no-picture'
    assert told[3].endswith('plain-sgd-0/result.json: top-1 81.5 %') and len(told) == 5, 'nothing to look at'
    (tmp_path / 'data' / 'test-boxes.csv').touch()
    again = stub(OURS[0])[1]
    assert f'{run.name} is finished' in again and f' --boxes {tmp_path}/data/test-boxes.csv ' in again


def test_logs_are_of_networks_with_transformers(stub):
    plain, ours = stub('plain', OURS[0], 'LOG=50')[2]
    assert '--stn-log' not in plain and ours.endswith(' --stn-log 50')
    assert '--stn-log' not in stub(OURS[1])[2][0]


@pytest.mark.parametrize('word, message', [
    ('COLOUR=1', 'unknown option COLOUR; options: WEIGHTS RECIPE'), ('plain448', 'unknown run plain448; runs: plain '),
    ('RECIPE=lamb', 'RECIPE takes sgd or adamw, got lamb'), ('EPOCHS=0', 'EPOCHS takes a positive number, got 0'),
    ('EPOCHS=1e2', 'EPOCHS takes a positive number, got 1e2'), ('SEED=-1', 'SEED takes a number, 0 or more, got -1'),
    ('SIDE=65', 'SIDE takes an even number from 64, got 65'), ('SIDE=32', 'SIDE takes an even number from 64, got 32'),
    ('BATCH_SIZE=08', 'BATCH_SIZE takes a positive number, got 08'), ('AMP=int8', 'AMP takes bfloat16, '),
    ('NPROC=0', 'NPROC takes a positive number'), ('NPROC=5', 'BATCH_SIZE takes a multiple of NPROC=5, got 32'),
    ('WORKERS=', None)])
def test_a_wrong_word_is_refused_before_anything_begins(stub, tmp_path, word, message):
    code, said, calls = stub('plain', word)
    if message is None:  # as not given
        assert code == 0 and ' -j 4 ' in calls[0]
        return
    assert code == 2 and said.startswith(message) and said.count('\n') == 1
    assert not calls and not (tmp_path / 'out').exists()


def test_wrong_folders_are_refused(stub, tmp_path):
    code, said, _ = stub(data=tmp_path / 'nowhere')
    assert code == 2 and '`timm-stn data cub` makes them' in said
    code, said, _ = stub(TIMM_SCRIPTS='/nowhere')
    assert code == 2 and said.startswith('TIMM_SCRIPTS must name a checkout')
    data = photographs(tmp_path / 'other', each=1)
    (data / 'train' / '001.Red_bird' / '0.jpg').unlink()
    code, said, _ = stub(data=data)
    assert (code, said) == (2, f'DATA: no photographs in {data}/train/001.Red_bird\n')
    (data / 'train' / '001.Red_bird').rmdir()
    code, said, _ = stub(data=data)
    assert (code, said) == (2, f'DATA: not the same classes in {data}/train and {data}/test\n')
    shutil.rmtree(data / 'train' / '002.Blue_bird')
    code, said, calls = stub(data=data)
    assert (code, said) == (2, f'DATA: {data}/train has no folders of photographs\n')
    assert not calls and not (tmp_path / 'out').exists()
    done = subprocess.run([TRAIN], capture_output=True, text=True)
    assert done.returncode == 2 and 'scripts/train_cub.sh DATA OUTPUT [OPTION=VALUE...] [NAME...]' in done.stdout
    assert done.stdout.rstrip().endswith('and nothing is made.'), 'all of the head, and no more'


def test_weights_are_a_file_or_a_resnet50_of_timms(tmp_path, monkeypatch):
    (tmp_path / 'mine.pth').touch()
    assert cub_weights.find(str(tmp_path / 'mine.pth')) == tmp_path / 'mine.pth'
    asked = []
    monkeypatch.setattr(cub_weights.huggingface_hub, 'hf_hub_download', lambda *a: asked.append(a) or str(tmp_path))
    assert cub_weights.find('resnet50.tv_in1k') == tmp_path
    assert asked == [('timm/resnet50.tv_in1k', 'model.safetensors')]
    for wrong in ('resnet50', 'resnet18.tv_in1k', 'stn_resnet50.tv_in1k'):
        with pytest.raises(ValueError, match=r'WEIGHTS takes a file or one of .*resnet50\.tv_in1k'):
            cub_weights.find(wrong)
    for wrong in (str(tmp_path / 'none'), 'none.safetensors', 'none.pth.tar'):
        with pytest.raises(ValueError, match=f'^WEIGHTS={wrong}: no such file$'):
            cub_weights.find(wrong)


def refused_weights(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, 'argv', ['cub_weights.py', *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cub_weights.main()
    out, told = capsys.readouterr()
    assert (stop.value.code, out, told.count('\n')) == (2, '', 1)
    return told


def test_weights_that_cannot_be_fetched_are_told_in_a_line(monkeypatch, capsys):
    def unreachable(*args):
        raise OSError('no network\nand more')

    monkeypatch.setattr(cub_weights.huggingface_hub, 'hf_hub_download', unreachable)
    assert refused_weights(monkeypatch, capsys, 'resnet50.tv_in1k') == (
        'WEIGHTS=resnet50.tv_in1k: timm/resnet50.tv_in1k cannot be fetched (OSError: no network); try again, or '
        'WEIGHTS=FILE\n')


def test_a_file_that_is_no_whole_resnet50_is_told_in_a_line(plain, tmp_path, monkeypatch, capsys):
    whole, state = plain
    for name in ('cut.safetensors', 'cut.pth'):
        (tmp_path / name).write_bytes(whole.read_bytes()[:10 ** 6])
        assert 'cannot be read as a checkpoint (' in refused_weights(monkeypatch, capsys, tmp_path / name)
    few = {name: value for name, value in state.items() if name.startswith(('conv1', 'bn1'))}
    torch.save(few, tmp_path / 'few.pth')
    assert refused_weights(monkeypatch, capsys, tmp_path / 'few.pth').endswith(': layer1.0.conv1.weight is missing\n')
    torch.save(state | {'conv1.weight': torch.zeros(64, 1, 7, 7)}, tmp_path / 'gray.pth')
    assert 'conv1.weight is (64, 1, 7, 7), not (64, 3, 7, 7)' in refused_weights(
        monkeypatch, capsys, tmp_path / 'gray.pth')


def test_weights_are_named_with_their_digest(plain, tmp_path, monkeypatch, capsys):
    file, state = plain
    torch.save({f'backbone.{name}': value for name, value in state.items()}, tmp_path / 'a network.pth')
    for each in (file, tmp_path / 'a network.pth'):
        monkeypatch.setattr(sys, 'argv', ['cub_weights.py', str(each)])
        cub_weights.main()
        with each.open('rb') as opened:
            assert capsys.readouterr().out == f'{hashlib.sha256(opened.read()).hexdigest()[:12]} {each}\n'


NO_GPU = pytest.param(
    'cuda', 'DEVICE=cuda, but torch sees no GPU here; DEVICE=cpu does without',
    marks=pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is here'))


@pytest.mark.parametrize('device, told', [
    ('foo', "DEVICE takes cuda, cuda:1, cpu or another device of torch's, got foo\n"), ('cpu:x', ', got cpu:x\n'),
    ('meta', 'DEVICE=meta cannot be used here (RuntimeError: '), NO_GPU])
def test_a_device_that_torch_cannot_use_is_told_in_a_line(plain, monkeypatch, capsys, device, told):
    assert told in refused_weights(monkeypatch, capsys, plain[0], '--device', device)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """A checkpoint of ResNet-50, as the Hub has them, and what is in it."""
    torch.manual_seed(0)
    state = timm.create_model('resnet50').state_dict()
    file = tmp_path_factory.mktemp('weights') / 'resnet50.safetensors'
    save_file(state, file)
    return file, state


@pytest.mark.parametrize('name', OURS)
def test_weights_arrive_bit_for_bit_wherever_there_is_a_resnet50(plain, name):
    """As train.py asks for them: with `--pretrained --pretrained-path FILE --num-classes 3`."""
    torch.manual_seed(1)
    file, state = plain
    model = timm.create_model(
        name, pretrained=True, num_classes=3, pretrained_cfg_overlay=dict(file=str(file), num_classes=-1))
    parts = [model.backbone]
    if name.endswith('_paper'):
        parts += [model.towers['1'], model.stn.localization.body[0].net]
    for part in parts:
        found = part.state_dict()
        arrived = {key for key, value in state.items() if key in found and torch.equal(found[key], value)}
        assert state.keys() - arrived == {'fc.weight', 'fc.bias'}
    assert model.get_classifier().out_features == model.num_classes == 3
    assert model.get_classifier().bias.abs().max() < 0.1 and model.get_classifier().weight.std() > 0


def command(data, out, plain, *words):
    return [TRAIN, data, out, f'WEIGHTS={plain[0]}', 'DEVICE=cpu', 'SIDE=64', 'WORKERS=0', 'BATCH_SIZE=4',
            f'PYTHON={sys.executable}', *words]


def environment():
    return os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')


def run_it(asked, **more):
    return subprocess.run(asked, env=environment() | more, capture_output=True, text=True)


@needs_scripts
def test_a_run_that_is_killed_resumes_and_ends(plain, tmp_path):
    data, out = photographs(tmp_path / 'data'), tmp_path / 'out'
    run, asked = out / f'{OURS[0]}-sgd-0', command(data, out, plain, 'EPOCHS=6', OURS[0])
    process = subprocess.Popen(asked, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    while not (run / 'last.pth.tar').is_file() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / 'result.json').exists() and (run / 'summary.csv').read_text().count('\n') == 2
    done = run_it(asked)
    assert done.returncode == 0 and 'Loaded checkpoint' in done.stderr, done.stderr
    assert re.findall(r'^\d+', (run / 'summary.csv').read_text(), re.MULTILINE) == ['4', '5']
    found = json.loads((run / 'result.json').read_text())
    assert 0 <= found['top1'] <= 100 and np.isfinite(found['train_loss']) and found['seconds_per_epoch'] >= 0
    assert found['weights'] == 'resnet50.safetensors' and str(tmp_path) not in json.dumps(found)
    held = torch.load(run / 'last.pth.tar', weights_only=False)['state_dict']
    start = plain[1]['layer4.2.conv3.weight']
    assert 0 < (held['backbone.layer4.2.conv3.weight'] - start).norm() < 0.2 * start.norm(), 'it began with the file'
    assert run_it(asked).stdout.startswith(f'{run.name} is finished\n{run}/result.json: top-1 {found["top1"]} %\n')


@needs_scripts
@pytest.mark.slow
@pytest.mark.parametrize('words', [['RECIPE=adamw', 'plain', 'plain_half'], ['RECIPE=adamw', *OURS], [OURS[1]]],
                         ids=' '.join)
def test_every_network_trains_by_both_recipes(plain, tmp_path, words):
    data, out = photographs(tmp_path / 'data'), tmp_path / 'out'
    done = run_it(command(data, out, plain, 'EPOCHS=1', *words))
    assert done.returncode == 0, done.stderr
    results = [json.loads(file.read_text()) for file in out.glob('*/result.json')]
    assert len(results) == sum('=' not in word for word in words)
    assert all(np.isfinite(result['train_loss']) for result in results)


JOB_WORDS = ('acme/birds', 'SEED=2', 'BATCH_SIZE=8')


@pytest.fixture
def job(stub, tmp_path):
    """`job(*words)` runs cub_job.sh with a python that does nothing: exit status, and all that was asked of it."""
    def run(*words, **more):
        photographs(tmp_path / 'work' / 'data', each=1)
        (tmp_path / 'asked').write_text('')
        env = dict(PYTHON=str(tmp_path / 'python'), TIMM_SCRIPTS=str(tmp_path), ASKED=str(tmp_path / 'asked'))
        done = run_it([JOB, *words, f'WORK={tmp_path}/work'], **env, **more)
        return done.returncode, (tmp_path / 'asked').read_text(), done.stderr
    return run


def test_a_job_tries_to_publish_before_it_trains(job, tmp_path):
    code, asked, said = job(*JOB_WORDS)
    assert code == 0, said
    work, run = tmp_path / 'work', tmp_path / 'work' / 'runs' / f'{OURS[0]}-sgd-2'
    steps = [asked.index(text) for text in (
        'cub_weights.py resnet50.tv_in1k --device cuda',
        'create_repo(sys.argv[1], exist_ok=True) acme/birds',
        f'https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz {work} CUB_200_2011.tgz 97eceeb196236b17',
        f'-m timm_stn.cli data cub --source {work}/CUB_200_2011.tgz --out {work}/data\n',
        f'-m timm_stn.run train.py --data-dir {work}/data ',
        f'-m timm_stn.cli push {run}/last.pth.tar --repo acme/birds ',
        f'upload_file(path_or_fileobj=sys.argv[2], path_in_repo="result.json", repo_id=sys.argv[1]) acme/birds {run}/')]
    assert steps == sorted(steps)
    assert ' --batch-size 8 ' in asked and ' --seed 2 ' in asked and f' --model {OURS[0]} ' in asked


@pytest.mark.parametrize('word', ['foo', 'EPOCHS=0', 'RECIPE=lamb', 'WRONG'])
def test_a_job_with_a_wrong_word_ends_before_it_creates_or_fetches(job, word):
    more = dict(WRONG='WEIGHTS: no') if word == 'WRONG' else {}
    code, asked, said = job('acme/birds', *[word] * (not more), **more)
    assert code == 2 and said.count('\n') == 1
    assert not any(text in asked for text in ('create_repo', 'clone_command', 'download_url', 'data cub'))


def test_a_job_can_be_tried(job):
    code, asked, said = job('acme/birds', 'CHECK=1')
    assert (code, said) == (0, '') and 'cub_weights.py' in asked and 'create_repo' not in asked


def test_a_job_of_another_archive_and_network(job, tmp_path):
    (tmp_path / 'mine.tgz').touch()
    code, asked, said = job('acme/birds', 'RECIPE=adamw', f'ARCHIVE={tmp_path}/mine.tgz', 'SUBSET=1', 'LICENSE=mit',
                            'DRY_RUN=1', 'plain')
    assert code == 0, said
    assert f'data cub --source {tmp_path}/mine.tgz --out {tmp_path}/work/data --subset' in asked
    assert '/plain-adamw-0/last.pth.tar --repo acme/birds --no-picture --license mit --dry-run' in asked
    assert not any(word in asked for word in ('create_repo', 'upload_file', 'download_url'))


@pytest.mark.parametrize('words', [[], ['plain'], ['SEED=1', 'acme/birds'], ['acme/birds', 'plain', OURS[0]]])
def test_a_job_has_one_repository_and_one_network(job, words):
    code, asked, _ = job(*words)
    assert (code, asked) == (2, '')


@needs_scripts
@pytest.mark.slow
def test_a_job_from_the_archive_to_the_hub(plain, tmp_path):
    """All of it, with a small archive on a server, and weights on a Hub that takes the network, on the loopback."""
    small = pytest.importorskip('small_archives')
    (tmp_path / 'served').mkdir()
    small.small_cub(tmp_path / 'served' / 'CUB.tgz', classes=2, each=8)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / 'served')
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server, Hub() as hub:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.users = {'hf_AnnWrites': User('ann', ('ann', 'acme'))}
        hub.create('timm/resnet50.tv_in1k', {'model.safetensors': plain[0].read_bytes()})
        words = ['EPOCHS=1', 'DEVICE=cpu', 'SIDE=64', 'WORKERS=0', 'BATCH_SIZE=4', 'SUBSET=1',
                 f'ARCHIVE=http://127.0.0.1:{server.server_port}/CUB.tgz', f'WORK={tmp_path}/work', 'LICENSE=mit']
        done = run_it([JOB, 'acme/birds', *words], PYTHON=sys.executable, HF_ENDPOINT=hub.url, HF_TOKEN='hf_AnnWrites',
                      HF_HOME=str(tmp_path / 'home'), HF_HUB_DISABLE_XET='1')
        server.shutdown()
        assert done.returncode == 0, done.stderr
        files = hub.files('acme/birds')
    assert files.keys() >= {'README.md', 'config.json', 'model.safetensors', 'result.json'}
    result = json.loads(files['result.json'])
    assert (result['args']['model'], result['weights']) == (OURS[0], 'resnet50.tv_in1k')
    assert b'license: mit' in files['README.md']
    config = json.loads(files['config.json'])
    assert config['num_classes'] == 2 and config['label_names'][0] == '001.Random_a_Bird'


def job_lines():
    """The lines of the page that start a job."""
    return [line.strip() for line in PAGE.splitlines() if line.startswith('    hf jobs run ')]


def test_the_line_of_the_page_is_understood_by_the_client():
    """By the parser of the one that is installed; nothing is sent."""
    hf = shutil.which('hf')
    if hf is None or b'--dry-run' not in subprocess.run([hf, 'jobs', 'run', '--help'], capture_output=True).stdout:
        pytest.skip('the installed huggingface_hub has no hf jobs run --dry-run')
    line, = job_lines()
    words = shlex.split(line)
    env = os.environ | dict(HF_TOKEN='hf_secret', HF_ENDPOINT='http://127.0.0.1:9', COLUMNS='400')
    done = subprocess.run([hf, *words[1:3], '--dry-run', *words[3:]], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and '(dry run) Job not submitted.' in done.stdout, done.stderr
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith('  '))
    assert (told['flavor'], told['image']) == ('a10g-large', 'pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime')
    assert told['secrets'] == 'HF_TOKEN=***' and told['timeout'] == '12h', 'the default is 30 minutes'
    shell, option, inner = shlex.split(told['command'])
    assert (shell, option) == ('bash', '-c')
    assert inner.split(' && ')[-1] == 'timm_stn/scripts/cub_job.sh USER/stn_resnet50_cub'
    assert subprocess.run(['bash', '-n', '-c', inner]).returncode == 0


def test_the_commands_of_the_page_are_those_of_the_scripts(stub):
    """Every line of it that trains, as it stands."""
    lines = re.findall(r'^    (?:for .*; do )?scripts/train_cub\.sh DATA OUTPUT([^#;\n]*)', PAGE, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        code, said, _ = stub(*shlex.split(line.replace('$seed', '1')))
        assert code == 0, said
