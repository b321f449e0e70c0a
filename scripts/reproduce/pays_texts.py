"""What docs/when_it_pays.md says of each experiment, with fields for all figures, which `pays_page.py` fills in.

Fields are {accuracy[NAME]}, {cost[NAME]} (multiply-adds), {gain[NAME beside NAME]}, {share[NAME of NAME]} (of
multiply-adds), {step[NAME of NAME]} (how many times the seconds of a training step), {overlap[NAME]} and
{inside[NAME]}, of cells' names.
"""
from typing import NamedTuple


class Goal(NamedTuple):
    """What one network shall reach beside another one. Without a gain they are only compared."""
    ours: str  # the name of its cell
    than: str
    gain: float | None = None  # points of accuracy, at least
    share: float | None = None  # of the other's multiply-adds, at most
    clear: bool = True  # whether the gain must be clear
    least: float = 0.0  # accuracy that ours must have, in percent
    column: str = ''  # of the table, where accuracy has several


class Use(NamedTuple):
    """A row of the table of decisions."""
    objects: str  # your objects are ...
    use: str  # the page advises it if it helps, and then has its arguments
    ours: str
    than: str
    column: str = ''
    size: str = ''  # of the images, where the arguments need it


class Told(NamedTuple):
    title: str
    text: str
    references: tuple[str, ...] = ()  # cells whose multiply-adds and seconds are 100 %; else the first of each table
    goals: tuple[Goal, ...] = ()
    uses: tuple[Use, ...] = ()
    command: str = ''  # where it is not one of reproduce.py
    images: int = 10_000  # that it is tested on


HEAD = """# When it pays

Should you put a spatial transformer into your network? Each section is one case: the plain backbone and the
transformer, the accuracy of both, what both cost, and the command. [Which one](#which-one) sums up. Made by
`python scripts/pays.py page` from the recorded runs ([results.jsonl](../model_cards/results.jsonl)) and times. Do not
edit.

Accuracy is in percent of the test images, after the last epoch: the mean of {seeds} seeds and its standard error. Where
there are fewer seeds, their number follows. "not run" has none yet. No epoch, seed or setting was chosen on test
images; settings were chosen in short trials on training images held back, which are not in the record. Of several
seeds, "±" is the standard error of their mean, and a difference counts if Student's t for as many seeds puts it beyond
95 %. Of one seed it is the standard error that the number of test images alone gives, and a difference counts if it is
three times as large. All others are "no clear difference". Overlap is the mean intersection over union of the true box
and the glimpse that meets it best; "centre inside" says how often the true box's centre lies in a glimpse.
Multiply-adds are of one image, of everything: all streams, where to look, sampling. {times}
"""
TIMES = """A training step is forward, backward and optimizer on {batch} images that are made before; it and the time of
an image in evaluation are medians of {repeats}, all networks of a table in turn in one process, by
`python scripts/pays.py cost` ([costs.jsonl](../model_cards/costs.jsonl)). In parentheses is the ratio to the
network whose multiply-adds are 100 %."""
OWN = """Sizes are shares of the image's side. To try a row on a folder of your own (train and
validation, each with one folder of images per class), give those of its arguments that begin with `stn_` to timm's
training script, whose checkout `TIMM_SCRIPTS` names, and choose crops that do not cut objects out. Here twice the size
of the scattered birds:

    timm-stn train --data-dir PHOTOS --num-classes N --model stn_resnet50 --pretrained --img-size 448 \\
        --crop-pct 1.0 --scale 0.8 1.0 --model-kwargs stn_size=224 stn_whole=True stn_scale=0.5 stn_transform=attention

To compare, train `--model resnet50 --img-size 224` without --model-kwargs. Accuracies are those of the case, for the
order of things; on your images they will be others."""
LITE0 = 'tf_efficientnet_lite0, fine-tuned from ImageNet weights'
BIRDS_COMMAND = """    TIMM_SCRIPTS=PYTORCH_IMAGE_MODELS scripts/train/train_birds.sh DATA FILE OUTPUT SEED=0 [NAME ...]

NAMEs are {names}. DATA has the folders train and test, each with one folder of images per class; FILE is the
model.safetensors of timm/tf_efficientnet_lite0.in1k. With BASE=tf_efficientnet_lite2 and its FILE, the second table is
that of a larger backbone. `make gpu` runs the same, and records it ([GPU](gpu.md))."""

TEXTS = {
    'scattered-birds': Told(
        'Scattered birds',
        f"""A photograph of a bird lies anywhere on a canvas of 448 x 448, a quarter to three quarters of its side
large, and fades out at its edge; texture and patches of other photographs surround it. 200 species, of Caltech-UCSD
Birds 200 (2010). {LITE0}; ours sees the whole canvas shrunk to 112 x 112, and a glimpse of 112 x 112. The true box is
that of the photograph. Ours with one glimpse has {{share[scattered-whole1 of scattered-plain168]}} of the multiply-adds
of plain 168. A step of its training takes, beside one of plain 224: {{step[scattered-whole1 of scattered-plain224]}}.
How often the centre of the photograph lies in the glimpse: {{inside[scattered-whole1]}}.""",
        ('scattered-plain224',),
        tuple(goal for name in ('scattered-whole1', 'scattered-whole2') for goal in (
            Goal(name, 'scattered-plain168'), Goal(name, 'scattered-plain224', 0.0),
            Goal(name, 'scattered-plain448', 0.0, 1 / 3, clear=False))),
        (Use('somewhere in the image, a quarter to three quarters of its side',
             'the whole image, shrunk, and a glimpse', 'scattered-whole1', 'scattered-plain168', size='img_size=448'),),
        images=3033),
    'birds': Told(
        'Birds as they are',
        f"""Photographs of 224 x 224, most of which the bird fills. {LITE0}, by timm's own train.py.
The goals are 2.5 points more at 112 x 112, and the accuracy of plain 224 for at most 75 % of its multiply-adds. What
fewer pixels alone give: plain 176 beside plain 224 has {{gain[birds-*/plain176 beside birds-*/plain224]}} points, for
{{share[birds-*/plain176 of birds-*/plain224]}} of the multiply-adds.

What could the choice of one crop give at 112 x 112? The photographs come without boxes here, so the oracle is one that
knows the answers. A plain network (`reproduce.py turned-birds --model plain`) answered for 28 crops of {{images}} test
images. The whole image is right in {{bound[whole]}}; the crop where the published network responds, which sees all
224 x 224 pixels, in {{bound[pointed_at]}}; the crop of which the network is most certain in {{bound[surest]}}. Some
crop of the 28 is right in {{bound[any]}}: that is the bound for whoever chooses among them, and only one who knows the
answer reaches it (`scripts/reproduce/measure_bound.py`).""",
        ('birds-*/plain224', 'birds2-*/plain224'),
        (Goal('birds-*/zoom112', 'birds-*/plain112', 2.5),
         *(Goal(f'birds-*/{name}', 'birds-*/plain224', 0.0, 0.75, clear=False)
           for name in ('whole2', 'whole4', 'glimpses2', 'glimpses4', 'one176', 'zoom192')),
         Goal('birds-*/whole2at448', 'birds-*/plain224', 0.0), Goal('birds-*/whole2at448', 'birds-*/plain448'),
         *(Goal(f'birds2-*/{name}', 'birds2-*/plain224', 0.0, 0.75, clear=False) for name in ('zoom192', 'whole2'))),
        (Use('filling the picture, and few pixels must do', 'a zoom', 'birds-*/zoom112', 'birds-*/plain112',
             size='img_size=224'),
         Use('filling the picture, and accuracy counts',
             'one glimpse, as large as what responds', 'birds-*/zoom192', 'birds-*/plain224', size='img_size=224'),
         Use('with parts that tell them apart, in several places', 'the whole image and glimpses', 'birds-*/whole2',
             'birds-*/plain224', size='img_size=224')),
        BIRDS_COMMAND,
        images=3033),
    'signs': Told(
        'Traffic signs',
        """Signs of the German Traffic Sign Recognition Benchmark, 43 classes, cut out with a little of what is around
them: 32 x 32 pixels that the sign fills. The goal is 99.5 % with fewer than three million parameters;
ours has {accuracy[signs-input]}. At 48 x 48 pixels, Arcos-Garcia et al. 2018 report 98.85 % without a transformer,
99.46, 99.67 and 99.71 % with one, two and three (14.6 million parameters). The true box is the benchmark's.""",
        ('signs-plain',),
        (Goal('signs-input', 'signs-plain', 0.0, least=99.5),),
        uses=(Use('filling the picture, a little askew', 'two looks at the image', 'signs-input',
                  'signs-plain'),),
        images=12_630),
    'sign-scenes': Told(
        'Traffic signs in scenes',
        """The same signs, small and anywhere on a canvas of 256 x 256 pixels. Plain networks see it shrunk; ours finds
a glimpse of 32 x 32 in the whole shrunk to 64 x 64, and classifies that alone. The centre of the sign lies in the
glimpse: {inside[scenes-glimpse]}.""",
        ('scenes-plain128',),
        tuple(Goal('scenes-glimpse', than) for than in ('scenes-plain64', 'scenes-plain128')),
        (Use('a tenth to a fifth of the side, one in a scene', 'one glimpse, found in the shrunk image',
             'scenes-glimpse', 'scenes-plain128'),),
        images=12_630),
    'megapixel': Told(
        'A digit in a megapixel',
        """Five digits of MNIST among marks, on 1500 x 1500 pixels; the answer is the one that is there three times
(Katharopoulos and Fleuret 2019, arXiv:1905.03711). Plain networks see the image shrunk; ours finds, in the shrunk
image, where to look in the full one: glimpses of 36 x 36 of its pixels, shown as 32 x 32. Digits have more ink than
marks, and that is how they are found. How often the
centre of one of the three lies in a glimpse: {inside[megapixel-5at250]}.""",
        ('megapixel-plain250',),
        tuple(Goal(f'megapixel-{ours}', f'megapixel-{than}') for ours, than in (
            ('5at250', 'plain250'), ('5at250', 'plain375'), ('5at375', 'plain250'), ('5at375', 'plain375'),
            ('10at250', 'plain250'), ('10at250', 'plain375'))),
        (Use('a fiftieth of the side, several, brighter than what else there is',
             'several glimpses, found in the shrunk image', 'megapixel-5at250', 'megapixel-plain250'),),
        images=1000),
    'turned-digits': Told(
        'Turned digits',
        """Digits of MNIST, upright and turned by any angle. Networks that look in several poses (`orbit`) are trained
on upright digits and answer through the pose of which they are most certain; those that turn the image are trained on
turned ones, as is the plain network to compare them with.""",
        ('turned-digits-turned-plain',),
        (*(Goal(f'turned-digits-upright-{ours}', f'turned-digits-{than}-plain', column=column)
           for ours in ('orbit8',)
           for than, column in (('upright', 'upright'), ('upright', 'turned'), ('turned', 'turned'))),
         *(Goal(f'turned-digits-turned-{ours}', 'turned-digits-turned-plain', column='turned')
           for ours in ('rotation', 'rotation2'))),
        (Use('turned, and the network was trained on upright ones', 'several poses',
             'turned-digits-upright-orbit8', 'turned-digits-upright-plain', 'turned'),
         Use('turned, and small networks are trained on turned ones', 'two looks that turn the image',
             'turned-digits-turned-rotation2', 'turned-digits-turned-plain', 'turned'))),
    'turned-birds': Told(
        'Turned birds',
        f"""Birds as they are at 112 x 112 pixels, upright and turned by any angle; what is outside of a turned
photograph is its reflection. {LITE0}, on upright or on turned photographs.""",
        ('turned-birds-turned-plain',),
        (*(Goal('turned-birds-upright-orbit8', f'turned-birds-{than}-plain', column=column)
           for than, column in (('upright', 'upright'), ('upright', 'turned'), ('turned', 'turned'))),
         Goal('turned-birds-turned-rotation2', 'turned-birds-turned-plain', column='turned')),
        (Use('turned photographs, and the network was trained on upright ones', 'several poses',
             'turned-birds-upright-orbit8', 'turned-birds-upright-plain', 'turned'),
         Use('turned photographs, and the network is trained on turned ones',
             'two looks that turn the image', 'turned-birds-turned-rotation2', 'turned-birds-turned-plain', 'turned')),
        images=3033),
    'volumes': Told(
        'Volumes',
        """Digits extruded, turned and moved in 60 x 60 x 60 voxels, flattened along the depth. Nothing was tuned.""",
        ('volumes-cnn',),
        uses=(Use('volumes, in any pose', '`affine3d`, as in `scripts/train/volume_net.py`',
                  'volumes-st-cnn', 'volumes-cnn'),)),
}
