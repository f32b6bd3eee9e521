"""Holds the facts of the made-up world that the sample data is about, each in English and
Chinese."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Name:
    """Holds one thing's name in both languages."""

    en: str
    zh: str


@dataclass(frozen=True, slots=True)
class Town:
    name: Name
    river: Name
    colour: Name
    """The colour of the town's houses."""
    animal: Name
    """The animal that the town's people keep."""
    food: Name
    """The food that the town is known for."""


@dataclass(frozen=True, slots=True)
class Person:
    name: Name
    town: Town
    job: Name
    is_woman: bool


def _town(*words: str) -> Town:
    names = [Name(*word.split("/")) for word in words]
    return Town(*names)


TOWNS = (
    _town("Lumor/卢莫", "Sela/塞拉河", "red/红色", "goats/山羊", "bread/面包"),
    _town("Tarn/塔恩", "Bruna/布鲁纳河", "blue/蓝色", "geese/鹅", "honey/蜂蜜"),
    _town("Ovelia/奥薇", "Dorn/多恩河", "white/白色", "sheep/绵羊", "cheese/奶酪"),
    _town("Kesh/克什", "Amra/安拉河", "yellow/黄色", "camels/骆驼", "dates/枣"),
    _town("Pellin/佩林", "Wend/温德河", "green/绿色", "ducks/鸭子", "soup/汤"),
    _town("Rudd/鲁德", "Ister/伊斯特河", "black/黑色", "horses/马", "salt/盐"),
    _town("Fenby/芬比", "Quill/奎尔河", "brown/棕色", "pigs/猪", "pies/馅饼"),
    _town("Sorrel/索雷", "Nima/尼玛河", "pink/粉色", "cats/猫", "tea/茶"),
    _town("Hask/哈斯克", "Umber/翁贝河", "grey/灰色", "dogs/狗", "fish/鱼"),
    _town("Zell/泽尔", "Lirra/利拉河", "purple/紫色", "bees/蜜蜂", "plums/李子"),
)


def _person(name: str, town: int, job: str, is_woman: bool) -> Person:
    return Person(Name(*name.split("/")), TOWNS[town], Name(*job.split("/")), is_woman)


PEOPLE = (
    _person("Mira/米拉", 0, "baker/面包师", True),
    _person("Tomas/托马斯", 1, "teacher/老师", False),
    _person("Anya/安雅", 2, "doctor/医生", True),
    _person("Bram/布拉姆", 3, "singer/歌手", False),
    _person("Clea/克莱", 4, "farmer/农民", True),
    _person("Dario/达里奥", 5, "smith/铁匠", False),
    _person("Elsa/艾尔莎", 6, "painter/画家", True),
    _person("Finn/芬恩", 7, "gardener/园丁", False),
    _person("Greta/格蕾塔", 8, "sailor/水手", True),
    _person("Hugo/雨果", 9, "tailor/裁缝", False),
    _person("Ines/伊内斯", 0, "writer/作家", True),
    _person("Jonas/约纳斯", 4, "miller/磨坊主", False),
)

FRUITS = (
    Name("apples", "苹果"),
    Name("pears", "梨"),
    Name("plums", "李子"),
    Name("nuts", "坚果"),
)

THINGS = (*FRUITS, *(town.animal for town in TOWNS))
"""Things that people have; only a tool knows how many."""

HELD_OUT_SUMS = frozenset(
    {
        *((2, 3), (4, 2), (5, 2), (3, 5), (2, 7), (6, 4), (8, 3), (4, 8), (7, 5), (9, 4)),
        *((5, 9), (12, 2), (6, 9), (10, 6), (7, 9), (13, 4), (3, 14), (11, 7), (14, 5), (8, 12)),
    }
)
"""Sums that never occur in the training text, in any wording; the same numbers in the other order
do occur."""
HELD_OUT_COUNTS = frozenset({(41, 47), (23, 28), (66, 73)})
"""(first, last) of the counts that never occur in the training text."""
