"""Chat templates that would take a machine's time or memory, or leave the sandbox; and what ordinary ones use."""

# ruff: noqa: E501 -- a template is a line

from __future__ import annotations

HUGE = "10000000000"
BIG = "{% set ns = namespace(x='ab') %}{% for i in range(17) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
"""`ns.x` is a text of a quarter of a megabyte."""
LAUGH = "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"

NUMBERS = {
    "tower": "{{ n ** (n ** n) }}",
    "power": "{{ 7 ** 10000000 }}",
    "power of a power": "{{ ((10 ** 1000) ** 1000) ** 1000 }}",
    "negative base": "{{ (-7) ** 10000000 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "powers of itself": "{% set ns = namespace(x=9) %}{% for i in range(9) %}{% set ns.x = ns.x ** ns.x %}{% endfor %}",
    "rounded": "{{ 1.5 | round(10000000, 'floor') }}",
    "rounded the other way": "{{ 1 | round(-10000000, 'ceil') }}",
    "sum of powers": "{{ [2 ** 9000, 2 ** 9000] | map('abs') | sum ** 99 }}",
    "long digits": BIG + "{{ ns.x.replace('a', '1').replace('b', '2') | int }}",
    "bytes of a number": f"{{{{ (5).to_bytes({HUGE}, 'big') }}}}",
    "bytes of a number in a loop": "{% for i in range(99999) %}{{ (5).to_bytes(100000, 'big') }}{% endfor %}",
}

TIMES = {f"{value} times": f"{{{{ ({value}) * {HUGE} }}}}" for value in ("'a'", "[1]", "(1, 2)", "n | string")} | {
    f"times {value}": f"{{{{ {HUGE} * {value} }}}}" for value in ("'a'", "[1]", "(1, 2)", "('a'|safe)")
}

WIDTHS = {
    f"method {name}": "{{ 'a'." + f"{name}({HUGE})" + " }}"
    for name in ("center", "ljust", "rjust", "zfill", "expandtabs")
} | {
    "filter center": f"{{{{ 'a' | center({HUGE}) }}}}",
    "filter center by name": f"{{{{ 'a' | center(width={HUGE}) }}}}",
    "filter indent": f"{{{{ 'a\n\nb' | indent({HUGE}, true) }}}}",
    "filter indent by a text": "{{ ('\n' * 9999) | indent('x' * 99999, blank=true) }}",
    "filter truncate": f"{{{{ 'a' | truncate({HUGE}, end='b' * {HUGE}) }}}}",
    "filter wordwrap": "{{ 'a b' | wordwrap(1, wrapstring='x' * 1000000) }}",
    "filter batch": f"{{{{ [1] | batch({HUGE}, 0) | list }}}}",
    "filter slice": f"{{{{ [1] | slice({HUGE}, 0) | list }}}}",
    "filter slice by name": f"{{{{ [1] | slice(slices={HUGE}) | list }}}}",
    "percent": "{{ '%9999999999d' % 1 }}",
    "percent precision": "{{ '%.999999999f' % 1.5 }}",
    "percent star": f"{{{{ '%*d' % ({HUGE}, 1) }}}}",
    "percent by name": "{{ '%(a)999999999s' % {'a': 1} }}",
    "percent filter": "{{ '%999999999s' | format('a') }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "format by name": "{{ '{a:>9999999999}'.format(a=1) }}",
    "format nested": f"{{{{ '{{:>{{}}}}'.format(1, {HUGE}) }}}}",
    "format precision": "{{ '{:.999999999f}'.format(1.5) }}",
    "format_map": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "format of what is safe": "{{ ('{:>9999999999}' | safe).format(1) }}",
    "format through attr": "{{ ('{:>9999999999}' | attr('format'))(1) }}",
    "format through an item": "{{ '{:>9999999999}'['format'](1) }}",
    "json indent": f"{{{{ [[1]] | tojson(indent={HUGE}) }}}}",
    "json indent by a text": "{{ range(99999) | list | tojson(indent='x' * 99999) }}",
    "json separators": "{{ range(9999) | list | tojson(separators=('x' * 99999, ':')) }}",
    "json in depth": "{% set ns = namespace(x=[1]) %}{% for i in range(90) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ([ns.x] * 300) | tojson(indent=64) }}",
    "a date": "{{ strftime_now('%9999999d' * 9999) }}",
    "lipsum": "{{ lipsum(n=100000) }}",
}

GROWTH = {
    "concatenated": BIG + "{{ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x ~ ns.x }}",
    "doubled by plus": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by tilde": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "doubled list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "doubled by times": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
    "doubled by replace": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aa').replace('b', 'bb') %}{% endfor %}",
    "doubled by a filter": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}",
    "doubled by join": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
    "doubled by format": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubled by percent": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubled by a block": "{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
    "doubled by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = f(ns.x) %}{% endfor %}",
    "replace everywhere": BIG + "{{ ns.x.replace('', ns.x) }}",
    "replace everywhere by a filter": BIG + "{{ ns.x | replace('a', ns.x) }}",
    "join of a text": BIG + "{{ ns.x.join(ns.x) }}",
    "join of a text by a filter": BIG + "{{ ns.x | join(ns.x) }}",
    "join of an iterator": BIG + "{{ ns.x.join(range(9999) | map('string')) }}",
    "join of an iterator by a filter": BIG + "{{ range(9999) | map('string') | join(ns.x) }}",
    "format again and again": BIG + "{{ ('{0}' * 9999).format(ns.x) }}",
    "percent again and again": BIG + "{{ ('%(x)s' * 9999) % {'x': ns.x} }}",
    "escaped again and again": "{% set ns = namespace(x='&') %}"
    "{% for i in range(99999) %}{% set ns.x = ns.x | forceescape %}{% endfor %}",
    "urlencoded again and again": "{% set ns = namespace(x='%') %}"
    "{% for i in range(99999) %}{% set ns.x = ns.x | urlencode %}{% endfor %}",
    "json of json": "{% set ns = namespace(x='\\\\\"') %}{% for i in range(99) %}{% set ns.x = ns.x | tojson %}{% endfor %}",
    "astral json": "{% set ns = namespace(x='\U0001f98a') %}"
    "{% for i in range(99) %}{% set ns.x = (ns.x ~ ns.x) | tojson(ensure_ascii=true) %}{% endfor %}",
    "kept texts": BIG
    + "{% set ns.all = [] %}{% for i in range(99999) %}{% set ns.all = ns.all + [ns.x[i:]] %}{% endfor %}",
    "kept slices": BIG + "{% set m = {} %}{% for i in range(9999) %}{% set ns.l = [ns.l, ns.x[1:]] %}{% endfor %}",
    "split": BIG + "{% for i in range(99) %}{% set ns.l = [ns.l, ns.x.split('a')] %}{% endfor %}",
    "characters": BIG + "{% for i in range(99) %}{% set ns.l = [ns.l, ns.x | list] %}{% endfor %}",
    "arguments": BIG + "{% macro f() %}{{ varargs | length }}{% endmacro %}"
    "{% for i in range(999) %}{{ f(*ns.x) }}{% endfor %}",
    "arguments of arguments": "{% macro f(a) %}{% if a %}{{ f(varargs, varargs, varargs) }}{% endif %}{% endmacro %}"
    "{{ f(1, 2, 3) }}",
    "lists of ranges": "{% for i in range(999) %}{% set x = range(9999) | list %}{% endfor %}",
    "kept lists": "{% set ns = namespace(l=[]) %}"
    "{% for i in range(999) %}{% set ns.l = [ns.l, range(99999) | list] %}{% endfor %}",
    "sum of lists": "{{ (range(99999) | batch(1) | list | sum(start=[])) | length }}",
    "output": "{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}",
    "output of a macro": "{% macro f() %}{% for i in range(99999) %}"
    + "x" * 500
    + "{% endfor %}{% endmacro %}{{ f() }}",
    "output of a set block": "{% set x %}{% for i in range(99999) %}" + "x" * 5000 + "{% endfor %}{% endset %}",
    "output of expressions": BIG + "{% for i in range(99999) %}{{ ns.x }}{% endfor %}",
    "many pieces": "{% for i in range(99999) %}" + "{{ i }}." * 500 + "{% endfor %}",
    "unique": "{{ range(99999) | unique | list | length }}" * 30,
    "grouped": "{% for i in range(99) %}{{ range(99999) | map('string') | groupby(0) | length }}{% endfor %}",
}

LAUGHS = {
    f"nested {name}": LAUGH + step + "{% endfor %}" + end
    for name, step in {
        "lists": "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}",
        "tuples": "{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}",
        "dicts": "{% set ns.x = {1: ns.x, 2: ns.x} %}{% set ns.y = {1: ns.y, 2: ns.y} %}",
        "calls of dict": "{% set ns.x = dict(a=ns.x, b=ns.x) %}{% set ns.y = dict(a=ns.y, b=ns.y) %}",
        "views": "{% set ns.x = {1: ns.x, 2: ns.x}.items() %}{% set ns.y = {1: ns.y, 2: ns.y}.items() %}",
        "sums": "{% set ns.x = [ns.x] + [ns.x] %}{% set ns.y = [ns.y] * 2 %}",
    }.items()
    for end in ("{{ ns.x }}", "{{ ns.x == ns.y }}", "{{ ns.x | tojson }}")
    for name in [f"{name} {end[3:-3]}"]
} | {
    "namespaces": LAUGH + "{% set ns.x = [namespace(a=ns.x, b=ns.x), ns.x] %}{% endfor %}{{ [ns.x] * 10**9 }}",
    "namespace of itself": "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns }}{{ ns.x }}"
    + "{{ [ns] * 10**9 }}",
    "cyclers": LAUGH + "{% set ns.x = cycler(ns.x, ns.x).items %}{% endfor %}{{ ns.x }}",
    "hash": LAUGH + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {}[ns.x] }}",
    "deep list": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "deep iterators": "{% set ns = namespace(x=[1]) %}"
    "{% for i in range(99999) %}{% set ns.x = ns.x | map('abs') %}{% endfor %}{{ ns.x | list }}",
}

LOOPS = {
    "two": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "two with output": "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "what is rejected": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "filters": "{% for a in range(99999) %}{{ range(99999) | map('abs') | select('odd') | list | length }}{% endfor %}",
    "sums": "{% for a in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
    "extremes": "{% for a in range(99999) %}{{ range(99999) | max }}{% endfor %}",
    "sorts": "{% set x = range(9999) | list %}{% for a in range(99999) %}{% set y = x | sort %}{% endfor %}",
    "searches": "{% set x = range(9999) | list %}{% for a in range(99999) %}{{ -1 in x }}{% endfor %}",
    "counts": "{% set x = range(9999) | list %}{% for a in range(99999) %}{{ x.count(a) }}{% endfor %}",
    "equal lists": "{% set x, y = range(9999) | list, range(9999) | list %}"
    "{% for a in range(99999) %}{% if x == y %}{% endif %}{% endfor %}",
    "characters": BIG + "{% for a in ns.x %}{% for b in ns.x %}{% endfor %}{% endfor %}",
    "recursive": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "recursive rejects": "{% for a in range(9999) if (a is odd) recursive %}{{ loop(range(9999)) }}{% endfor %}",
    "macro of itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macro of itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "callers": "{% macro f(n) %}{{ caller(n) }}{{ caller(n) }}{% endmacro %}"
    "{% macro g(n) %}{% if n %}{% call(m) f(n) %}{{ g(m - 1) }}{% endcall %}{% endif %}{% endmacro %}{{ g(60) }}",
    "block of itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "search from the right": BIG + "{% set y = 'b' + ns.x[:131072].replace('b', 'a') %}"
    "{% set x = ns.x.replace('b', 'a') %}{% for i in range(99) %}{{ x.rfind(y) }}{% endfor %}",
    "strip": BIG + "{% set x = ns.x.replace('b', 'a') %}"
    "{% for i in range(99) %}{{ x.strip('b' * 100000 + 'a') | length }}{% endfor %}",
    "keys that look alike": "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}"
    "{% set ns.x = ns.x + [(i * 2305843009213693951, 1)] %}{% endfor %}{{ dict(ns.x) | length }}",
    "unique values that look alike": "{% set ns = namespace(x=[]) %}{% for i in range(5000) %}"
    "{% set ns.x = ns.x + [i * 2305843009213693951] %}{% endfor %}{{ (ns.x * 6) | unique | list | length }}",
    "views less views": "{% set x = {'a': 1} %}{{ x.keys() - range(99999) }}",
}

ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "class by attr": "{{ ('' | attr('__class__')).x }}",
    "class by an item": "{{ ''['__class__'].x }}",
    "class by map": "{{ [''] | map(attribute='__class__.__mro__') | list }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "class by format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "globals of a function": "{{ raise_exception.__globals__.os }}",
    "globals of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "globals of a filter's function": "{{ namespace.__init__.__globals__ }}",
    "environment of a cycler": "{{ cycler.__init__.__globals__.os }}",
    "namespace of internals": "{{ namespace(**{'__class__': 1}) }}",
    "attribute of a namespace": "{% set ns = namespace() %}{% set ns.__dict__ = 1 %}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ messages[0].update({'a': 1}) }}",
    "pop": "{{ messages[0].pop('role') }}",
    "sort": "{{ messages.sort() }}",
    "encode": "{{ 'a'.encode() }}",
    "translate": "{{ 'a'.translate({97: 'x' * 99999}) }}",
    "to_bytes": "{{ (1).to_bytes(2, 'big') }}",
    "from_bytes": "{{ (1).from_bytes('a') }}",
    "generator": "{{ ([1] | map('abs')).gi_frame.f_globals }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "json of a class": "{{ 1 | tojson(cls=1) }}",
    "autoescape": "{% autoescape true %}{{ '<' }}{% endautoescape %}",
}

DEEP = {
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "lists": "{{ " + "[" * 300 + "]" * 300 + " }}",
    "attributes": "{{ messages" + ".a" * 5000 + " }}",
    "filters": "{{ 1" + " | abs" * 5000 + " }}",
    "plus": "{{ 1" + " + 1" * 20000 + " }}",
    "not": "{{ " + "not " * 20000 + "1 }}",
    "ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "loops": "{% for a in [1] %}" * 200 + "{% endfor %}" * 200,
    "a long number": "{{ " + "9" * 5000 + " }}",
    "a long template": "{{ 1 }}" * 100_000,
    "closed never": "{{ (" * 20000,
}

BOMBS = {
    f"{kind}: {name}": template
    for kind, templates in {
        "number": NUMBERS, "times": TIMES, "width": WIDTHS, "growth": GROWTH, "laughs": LAUGHS, "loop": LOOPS,
        "escape": ESCAPES, "deep": DEEP,
    }.items()
    for name, template in templates.items()
}  # fmt: skip

ORDINARY = [
    ("{{ 2 ** 10 + 3 * 4 - 7 // 2 + 7 % 4 }} {{ 1 / 4 }} {{ -2 ** 2 }}", "1036 0.25 4"),
    ("{{ 'ab' * 3 }} {{ [1] * 2 + [3] }} {{ (1,) + (2,) }}", "ababab [1, 1, 3] (1, 2)"),
    ("{{ '%s is %05.1f%%' % ('it', 2.5) }} {{ '%(a)s' % {'a': 1} }}", "it is 002.5% 1"),
    ("{{ '{:>5}|{0!r}|{a[x]}'.format(1, a={'x': 2}) if false else '{:>5}|{a[x]}'.format(1, a={'x': 2}) }}", "    1|2"),
    ("{{ '{a}'.format_map({'a': 3}) }} {{ 'a'.center(5) }}|{{ 'a' | center(3) }}|", "3   a  | a |"),
    ("{{ 'a,b'.split(',') }} {{ 'a b'.split() }} {{ 'a\nb'.splitlines() }}", "['a', 'b'] ['a', 'b'] ['a', 'b']"),
    ("{{ ' x '.strip() }}{{ 'xax'.strip('x') }} {{ 'aXbX'.rfind('X') }} {{ ','.join(['a', 'b']) }}", "xa 3 a,b"),
    ("{{ range(9) | select('odd') | map('string') | join('-') }} {{ [3, 1, 2] | sort | join }}", "1-3-5-7 123"),
    ("{{ [1, 2, 3] | sum }} {{ [{'a': 1}, {'a': 2}] | sum(attribute='a') }} {{ [1, 5] | max }}", "6 3 5"),
    (
        "{{ range(5) | batch(2, 0) | list }} {{ range(4) | slice(2) | list }}",
        "[[0, 1], [2, 3], [4, 0]] [[0, 1], [2, 3]]",
    ),
    ("{{ [1, 1, 2] | unique | list }} {{ 'ab' | list }} {{ 'ab' | reverse }}", "[1, 2] ['a', 'b'] ba"),
    (
        "{{ {'a': [1]} | tojson(indent=2) }} {{ [1, 2] | tojson(separators=(',', ':')) }}",
        '{\n  "a": [\n    1\n  ]\n} [1,2]',
    ),
    ("{{ 'a\nb' | indent(2) }} {{ 'aa' | replace('a', 'b') }} {{ 'aa'.replace('a', 'b', 1) }}", "a\n  b bb ba"),
    ("{% for a in [[1, [2]], [3]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}", "123"),
    (
        "{% for a in 'abc' if a != 'b' %}{{ loop.index }}{{ a }}{{ loop.length }}{{ loop.cycle('x', 'y') }}{% endfor %}",
        "1a2x2c2y",
    ),
    ("{% macro f(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{% endmacro %}{{ f(1) }}{{ f(*[1, 2, 3]) }}", "12()12(3,)"),
    ("{% macro f() %}<{{ caller(1) }}>{% endmacro %}{% call(x) f() %}{{ x }}{% endcall %}", "<1>"),
    (
        "{{ 1 ~ 'a' ~ none }} {{ nothing }}{{ nothing | default('d') }} {{ messages[0:1][0].role[::-1] }}",
        "1aNone d resu",
    ),
    (
        "{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }} {{ dict(a=1) }} {{ dict([(1, 2)]) }}",
        "2 {'a': 1} {1: 2}",
    ),
    (
        "{{ 1.27 | round(1) }} {{ '7' | int }} {{ '1.5' | float }} {{ messages | length }} {{ 'ab' | upper }}",
        "1.3 7 1.5 1 AB",
    ),
    ("{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x %}c{% endset %}{{ x }}{% block b %}d{% endblock %}", "ABcd"),
    ("{{ 'x' if 1 in [1] and 'a' in {'a': 1} and 2 is even and 'a' is string }}{{ '<' | e }}", "x&lt;"),
]
