"""Makes docs/when_it_pays.md of the recorded runs and times: no figure on it is typed by hand."""
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from birds_cells import birds
from cells import SEEDS, Cell, cells
from pays_cells import pays
from pays_texts import HEAD, OWN, TEXTS, TIMES, Goal, Told, Use
from records import Line
from results_table import NOT_RUN, Found, command, few, figure, options_of, runs_of, short, span, standard_error

NOT_MEASURED = 'not measured'
T = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}  # 97.5 % of Student's t, by degrees of freedom
BOUND = 'birds-bound-0'  # the line of measure_bound.py
PICTURE = """![Test images with outlines of the glimpses, what was seen, the answer](pays/{experiment}.jpg)

*Test images, taken at even distances and not by their answers: where it looked (the true box in white, where it is
known), what it saw, the answer.*
"""


class Gain(NamedTuple):
    """Points of accuracy that one network has more than another."""
    points: float
    error: float  # their standard error: of the seeds; where one has a single seed, of the draw of the test images
    freedom: int = 0  # degrees, of the seeds; 0: where one has a single seed


def all_cells() -> list[Cell]:
    """Those of the page, an experiment after another."""
    found = [*birds(), *pays(), *(cell for cell in cells() if cell.experiment == 'volumes')]
    return sorted(found, key=lambda cell: list(TEXTS).index(cell.experiment))


def tables_of(found: Iterable[Cell]) -> dict[str, list[list[Cell]]]:
    """The cells of each experiment's tables, one for each kind of data."""
    groups: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in found:
        groups[cell.experiment, cell.recipe, cell.parts].append(cell)
    tables: dict[str, list[list[Cell]]] = defaultdict(list)
    for (experiment, *_), mine in groups.items():
        tables[experiment].append(mine)
    return tables


class Book:
    """Figures by the names of cells; None, or '' as text, of what was not run or not measured.

    Args:
        tables: Cells as of `tables_of`.
        lines: The record of runs.
        costs: The record of times.
    """

    def __init__(self, tables: dict[str, list[list[Cell]]], lines: Iterable[Line], costs: Iterable[Line]) -> None:
        recorded = {line['name']: line for line in lines}
        self.bound = recorded.get(BOUND, {})
        self.tables = [table for mine in tables.values() for table in mine]
        self.cells: dict[str, dict[str, Cell]] = defaultdict(dict)  # by column
        for cell in (cell for table in self.tables for cell in table):
            self.cells[cell.name][cell.column] = cell
        self.found = {(name, column): runs_of(cell, recorded) for name, columns in self.cells.items()
                      for column, cell in columns.items()}
        self.costs = {(line['name'], place(line)): line for line in costs}
        self.places = list(dict.fromkeys(place for _, place in self.costs))

    def run(self, name: str, column: str = '') -> Found | None:
        column = column or next(iter(self.cells.get(name, {'': None})))
        return self.found.get((name, column))

    def row(self, name: str) -> str:
        return next(iter(self.cells[name].values())).row if name in self.cells else name

    def accuracies(self, name: str, column: str = '') -> list[float]:
        """In percent, of each seed."""
        found = self.run(name, column)
        if found is None:
            return []
        more = next(iter(self.cells[name].values())).higher
        return [value if more else 100 - value for value in found.values]

    def gain(self, ours: str, than: str, column: str = '') -> Gain | None:
        """Points of accuracy that one network has more than another."""
        pair = [self.accuracies(name, column) for name in (ours, than)]
        if not all(pair):
            return None
        means, one_seed = [statistics.mean(values) for values in pair], min(map(len, pair)) == 1
        freedom = 0 if one_seed else sum(map(len, pair)) - 2
        images = TEXTS[next(iter(self.cells[ours].values())).experiment].images
        squares = [mean * (100 - mean) / images for mean in means] if one_seed else [
            standard_error(values) ** 2 for values in pair]
        return Gain(means[0] - means[1], sum(squares) ** 0.5, freedom)

    def cost(self, name: str) -> float | None:
        """Multiply-adds, in billions."""
        found = self.run(name)
        return found.runs[0].get('multiply_adds') if found else None

    def share(self, ours: str, than: str) -> float | None:
        pair = self.cost(ours), self.cost(than)
        return pair[0] / pair[1] if pair[0] and pair[1] else None

    def time(self, name: str, where: str, key: str) -> float | None:
        return self.costs.get((name, where), {}).get(key)

    def slower(self, ours: str, than: str, where: str, key: str = 'step') -> float | None:
        """The ratio of times, which were measured in one process."""
        pair = [self.costs.get((name, where)) for name in (ours, than)]
        if not (pair[0] and pair[1] and pair[0]['time'] == pair[1]['time']):
            return None
        return pair[0][key] / pair[1][key]

    def steps(self, ours: str, than: str) -> list[tuple[str, float]]:
        """The ratio of training steps, on each device."""
        return [(where, ratio) for where in self.places if (ratio := self.slower(ours, than, where))]

    def rival(self, name: str, column: str = '') -> str | None:
        """The most accurate plain network of the same table and training set that has no more multiply-adds."""
        cost = self.cost(name)
        if cost is None or self.is_ours(name) is False:
            return None
        table = next(table for table in self.tables if any(cell.name == name for cell in table))
        trained = {cell.name: options_of(cell).get('--set') for cell in table}
        plain = [other for other, on in trained.items() if on == trained[name]
                 and self.is_ours(other) is False and self.accuracies(other, column)]
        others = [other for other in plain if (self.cost(other) or cost + 1) <= cost]
        return max(others, key=lambda other: statistics.mean(self.accuracies(other, column)), default=None)

    def best_plain(self, name: str, column: str = '') -> str | None:
        """The most accurate plain network of the same table, whatever it costs and was trained on."""
        table = next(table for table in self.tables if any(cell.name == name for cell in table))
        plain = {cell.name for cell in table if self.is_ours(cell.name) is False and self.accuracies(cell.name, column)}
        return max(sorted(plain), key=lambda other: statistics.mean(self.accuracies(other, column)), default=None)

    def settings(self, name: str) -> list[str]:
        """What a network is made with, of its cell or else of a run."""
        cell, found = next(iter(self.cells[name].values())), self.run(name)
        if cell.command or not found:
            return options_of(cell).get('--model-kwargs', [])
        return [f'{k}={v}'.replace(' ', '') for k, v in found.runs[0]['args'].get('model_kwargs', {}).items()]

    def is_ours(self, name: str) -> bool | None:
        """Whether a cell's network has a transformer; None if neither the cell nor a run says."""
        found = self.run(name)
        models = options_of(next(iter(self.cells[name].values()))).get('--model')
        models = models or [run['args']['model'] for run in (found.runs if found else [])]
        return models[0].startswith('stn_') if models else None

    def looks(self, name: str, key: str) -> list[float]:
        found = self.run(name)
        return [run['looks'][key] for run in found.runs if 'looks' in run] if found else []


class Field:
    """Figures of a kind, as text: `book[name]`, or of a pair `book[name beside name]`."""

    def __init__(self, of: Callable[..., str], word: str = '', missing: str = NOT_RUN) -> None:
        self.of, self.word, self.missing = of, word, missing

    def __getitem__(self, key: str) -> str:
        return self.of(*(key.split(f' {self.word} ') if self.word else [key])) or self.missing


def drawn(line: Line, name: str) -> str:
    """An accuracy of measure_bound.py, with the standard error of the draw of its images."""
    if not line:
        return ''
    share = line['accuracies'][name]
    return f'{share:.1f} ± {(share * (100 - share) / line["images"]) ** 0.5:.1f} %'


def fields(book: Book) -> dict[str, Any]:
    """Those of the texts."""
    def mean(values: list[float]) -> str:
        return f'{statistics.mean(values):.2f} %' if values else ''

    def step(ours: str, than: str) -> str:
        return ', '.join(f'{ratio:.2f} times ({where})' for where, ratio in book.steps(ours, than))

    return dict(
        accuracy=Field(lambda name: mean(book.accuracies(name))),
        bound=Field(lambda name: drawn(book.bound, name)),
        images=book.bound.get('images', 'some'),
        cost=Field(lambda name: f'{found:.3f} G' if (found := book.cost(name)) else ''),
        gain=Field(lambda *pair: told(book.gain(*pair)), 'beside'),
        share=Field(lambda *pair: percent(book.share(*pair)), 'of'),
        step=Field(step, 'of', NOT_MEASURED),
        overlap=Field(lambda name: mean(book.looks(name, 'iou'))),
        inside=Field(lambda name: mean(book.looks(name, 'inside'))))


def page(lines: Iterable[Line], costs: Iterable[Line] = (), pictures: Iterable[str] = ()) -> str:
    """The page, of the lines of both records, and the experiments of which there are pictures."""
    tables, costs = tables_of(all_cells()), list(costs)
    book = Book(tables, lines, costs)
    parts = [filled(HEAD.format(seeds=SEEDS, times=timing(costs)))]
    for experiment, mine in tables.items():
        parts.append(section(experiment, mine, book, experiment in {*pictures}))
    every = [(told, goal) for experiment, told in TEXTS.items() for table in tables.get(experiment, [])
             for goal in goals_of(told, table, book)]
    return '\n'.join([*parts, decisions(book, tables), not_helped(every, book)])


def filled(text: str) -> str:
    """Paragraphs with lines of equal width, but for commands."""
    return '\n\n'.join(part if part.startswith('    ') else textwrap.fill(part, 120, break_on_hyphens=False)
                       for part in text.split('\n\n')) + '\n'


def timing(costs: list[Line]) -> str:
    """How times were measured."""
    if not costs:
        return 'Times were not measured yet.'
    batch, repeats = (' or '.join(map(str, sorted({line[key] for line in costs}))) for key in ('batch_size', 'repeats'))
    return TIMES.format(batch=batch, repeats=repeats)


def section(experiment: str, tables: list[list[Cell]], book: Book, picture: bool) -> str:
    told = TEXTS[experiment]
    parts = [f'## {told.title}\n', filled(told.text.format(**fields(book)))]
    if told.command:
        names = ', '.join(cell.name.rpartition('/')[2] for cell in tables[0] if '/' in cell.name)
        run, about = told.command.format(names=names).split('\n\n')
        parts += [run + '\n', filled(about)]
    trained = [cell for table in tables for cell in table if cell.command]
    if trained:
        parts.append(command(trained) + '\n')
    for cells_of_table in tables:
        parts += [table(told, cells_of_table, book), arguments(cells_of_table, book)]
    if picture:
        parts.append(PICTURE.format(experiment=experiment))
    return '\n'.join(part for part in parts if part)


def reference_of(told: Told, mine: list[Cell]) -> str:
    """The cell of a table that others' costs are shares of."""
    names = [cell.name for cell in mine]
    return next((name for name in told.references if name in names), names[0])


def goals_of(told: Told, mine: list[Cell], book: Book) -> list[Goal]:
    """Those of a table; rows of ours without one are compared with the reference."""
    names = list(dict.fromkeys(cell.name for cell in mine))
    goals = [goal for goal in told.goals if goal.ours in names]
    reference, columns = reference_of(told, mine), list(dict.fromkeys(cell.column for cell in mine))
    missing = [name for name in names if book.is_ours(name) and not any(goal.ours == name for goal in goals)]
    return goals + [Goal(name, reference, column=column if len(columns) > 1 else '')
                    for name in missing if name != reference for column in columns]


def table(told: Told, mine: list[Cell], book: Book) -> str:
    """A row for each network: accuracy, looks, size, costs, and what that is beside the others."""
    columns = list(dict.fromkeys(cell.column for cell in mine))
    names = list(dict.fromkeys(cell.name for cell in mine))
    reference, goals = reference_of(told, mine), goals_of(told, mine, book)
    looked = any(book.looks(name, 'iou') for name in names)
    places = [where for where in book.places if any(book.time(name, where, 'step') for name in names)]
    head = [f'accuracy, {column}, %' if len(columns) > 1 else 'accuracy, %' for column in columns]
    head += ['overlap, %', 'centre inside, %'] if looked else []
    head += ['parameters', 'multiply-adds', f'of {book.row(reference)}']
    head += [f'{what}, {where}' for where in places for what in ('a training step', 'an image')]
    head += [] if places else ['a training step']
    lines = [f'| | {" | ".join(head)} | beside others |', '| --- ' * (len(head) + 2) + '|']
    for name in names:
        found = book.run(name)
        shown = [accuracy(book.accuracies(name, column)) if column in book.cells[name] else '' for column in columns]
        shown += [figure(v) if (v := book.looks(name, key)) else '' for key in ('iou', 'inside')] if looked else []
        shown += [span([found.parameters]) if found else '', f'{cost:.3f} G' if (cost := book.cost(name)) else '',
                  percent(book.share(name, reference))]
        shown += [time(book, name, reference, where, key) for where in places for key in ('step', 'image')]
        shown += [] if places else [NOT_MEASURED]
        verdicts = '; '.join(verdict(goal, book) for goal in goals if goal.ours == name)
        lines.append(f'| {book.row(name)} | {" | ".join(shown)} | {verdicts} |')
    return '\n'.join(lines) + '\n'


def arguments(mine: list[Cell], book: Book) -> str:
    """What networks of a table are made with."""
    lines = []
    for cell in {cell.name: cell for cell in mine}.values():
        if given := book.settings(cell.name):
            lines.append(f'- {cell.row}: `{" ".join(given)}`')
    return '\n'.join(lines) + '\n' if lines else ''


def accuracy(values: list[float]) -> str:
    return figure(values) + few(values) if values else NOT_RUN


def percent(share: float | None) -> str:
    return '' if share is None else f'{share:.0%}'.replace('%', ' %')


def told(gain: Gain | None) -> str:
    """Points more or less, or that there is no clear difference; '' if it is not known."""
    if gain is None:
        return ''
    text = f'{gain.points:+.2f} ± {gain.error:.2f}' + ('' if gain.freedom else ', one seed')
    return text if is_clear(gain) else f'no clear difference ({text})'


def is_clear(gain: Gain) -> bool:
    """Whether a gain or a loss is more than chance may give, see HEAD."""
    return abs(gain.points) > (3.0 if gain.freedom == 0 else T[min(gain.freedom, 4)]) * gain.error


def reached(goal: Goal, book: Book) -> bool | None:
    """Whether a goal was; None if that is not known. One without a gain asks for any that is clear."""
    gain, share = book.gain(goal.ours, goal.than, goal.column), book.share(goal.ours, goal.than)
    if goal.share is not None and share is not None and share > goal.share:
        return False
    if gain is None or (goal.share is not None and share is None):
        return None
    enough = statistics.mean(book.accuracies(goal.ours, goal.column)) >= goal.least
    return enough and gain.points >= (goal.gain or 0) and (is_clear(gain) or not goal.clear)


def wanted(goal: Goal) -> str:
    """A goal in words."""
    text = f'{goal.gain:+g}' if goal.gain else 'above it' if goal.clear else 'no lower'
    text += f', at least {goal.least:g} %' if goal.least else ''
    return text if goal.share is None else f'{text}, for at most {percent(goal.share)}'


def verdict(goal: Goal, book: Book) -> str:
    """How one network is beside another."""
    gain, share = book.gain(goal.ours, goal.than, goal.column), book.share(goal.ours, goal.than)
    text = f'{told(gain) or NOT_RUN} beside {book.row(goal.than)}' + (f', {goal.column}' if goal.column else '')
    if goal.share is not None and share is not None:
        text += f', for {percent(share)} of its multiply-adds'
    if goal.gain is None:
        return text
    word = {True: 'met', False: 'not met', None: 'open'}[reached(goal, book)]
    return f'{text}: goal ({wanted(goal)}) {word}'


def time(book: Book, name: str, reference: str, where: str, key: str) -> str:
    seconds, ratio = book.time(name, where, key), book.slower(name, reference, where, key)
    if seconds is None:
        return NOT_MEASURED
    text = f'{seconds:.3g} s' if seconds >= 1 else f'{1000 * seconds:.3g} ms'
    return text if ratio is None else f'{text} ({ratio:.2f} x)'


def place(line: Line) -> str:
    """Where times were measured."""
    threads = line['threads']
    return f'{short(line["device"])}, {threads} thread{"s" if threads > 1 else ""}' if line['device'] == 'cpu' else (
        short(line['device']))


def expected(use: Use | Goal, book: Book) -> str:
    """What one network gives and costs in place of another, and beside a plain one that costs no more."""
    ours, than = (book.accuracies(name, use.column) for name in (use.ours, use.than))
    if not ours or not than:
        return NOT_RUN
    text = [f'{statistics.mean(ours):.2f} % in place of the {statistics.mean(than):.2f} % of {book.row(use.than)} '
            f'({told(book.gain(use.ours, use.than, use.column))})']
    if share := percent(book.share(use.ours, use.than)):
        text.append(f'for {share} of the multiply-adds')
    text += [f'{ratio:.2f} times the seconds a training step ({where})'
             for where, ratio in book.steps(use.ours, use.than)]
    rival = book.rival(use.ours, use.column)
    if rival and rival != use.than and (gain := book.gain(use.ours, rival, use.column)) and (
            gain.points < 0 or not is_clear(gain)):
        text.append(f'and {book.row(rival)}, which costs no more, is no worse: {told(gain)}')
    return ', '.join(text) + elsewhere(use, book)


def elsewhere(use: Use | Goal, book: Book) -> str:
    """What else there is to know: a plain network that is more accurate, and other sets of test images."""
    better = book.best_plain(use.ours, use.column)
    text = ''
    if better and better != use.than and (gain := book.gain(better, use.ours, use.column)) and gain.points > 0:
        text += (f'; {book.row(better)} has {statistics.mean(book.accuracies(better, use.column)):.2f} %, for '
                 f'{percent(book.share(better, use.ours))} of its multiply-adds')
    for column in book.cells[use.ours]:
        pair = [book.accuracies(name, column) for name in (use.ours, use.than)]
        if use.column and column != use.column and all(pair):
            text += f'; {column} {statistics.mean(pair[0]):.2f} % in place of {statistics.mean(pair[1]):.2f} %'
    return text


def helps(goal: Goal, book: Book) -> bool | None:
    """Whether a goal was reached, and no plain network that costs no more is as accurate; None if it is not known."""
    goal = goal._replace(least=0.0)  # it may help, and not be as good as was hoped
    rival = book.rival(goal.ours, goal.column)
    if rival and (gain := book.gain(goal.ours, rival, goal.column)) and not (gain.points > 0 and is_clear(gain)):
        return False
    return reached(goal, book)


def decisions(book: Book, tables: dict[str, list[list[Cell]]]) -> str:
    """What to use for which objects, as the record has it."""
    lines = ['## Which one\n', filled(OWN), '| your objects are | use | expect |', '| --- | --- | --- |']
    for experiment, told in TEXTS.items():
        lines += [f'| {use.objects} ([{told.title}](#{anchor(told.title)})) | {advice(use, told, book)} | '
                  f'{expected(use, book)} |' for use in told.uses if experiment in tables]
    return '\n'.join(lines) + '\n'


def advice(use: Use, told: Told, book: Book) -> str:
    """What to use: the transformer, or the plain network where that does not help."""
    goals = (goal for goal in told.goals if (goal.ours, goal.than, goal.column) == (use.ours, use.than, use.column))
    goal = next(goals, Goal(use.ours, use.than, column=use.column))
    helped, rival = helps(goal, book), book.rival(use.ours, use.column)
    given = book.settings(use.ours)
    given = [use.size, *given] if use.size and given else given
    text = f'{use.use}: `{" ".join(given)}`' if given else use.use
    if helped is None:
        return f'perhaps {text}; this is open'
    return text if helped else f'{book.row(rival if reached(goal, book) and rival else use.than)}; not {use.use}'


def anchor(title: str) -> str:
    return title.lower().replace(' ', '-')


def not_helped(every: list[tuple[Told, Goal]], book: Book) -> str:
    """Where a goal was not met, or no gain is clear."""
    lines = [f'- {told.title}, {book.row(goal.ours)}{", " * bool(goal.column)}{goal.column}: {expected(goal, book)}.'
             for told, goal in every if helps(goal, book) is False]
    text = ('Here a goal was not met, no gain is clear, or a plain network that costs no more is as accurate:\n\n'
            + '\n'.join(lines)) if lines else 'None is known yet.'
    return f'## Where it does not help\n\n{text}\n'
