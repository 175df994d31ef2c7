"What is quoted is what was measured: reports, their tables, and every number that a text takes from them"
import json, re, shutil, subprocess, sys

import pytest

from soundlm.core import SoundlmError
from soundlm.metrics import checksum, packed, read_report, report_text, unpacked, write_report
from soundlm.report import look_up, overview, quotes, quoting, read_reports, rebuild, requote, stale
from tree import root

folder = root/'reports'
files = sorted(folder.glob('*.json'))

@pytest.fixture(scope='module')
def reports(): return read_reports(folder)

@pytest.mark.parametrize('f', files, ids=lambda f: f.stem)
def test_tables_are_their_json(f):
    assert f.with_suffix('.md').read_text('utf-8')==report_text(read_report(f)), 'run `soundlm report`'

def test_quoted_numbers_are_their_json(reports):
    assert [p.name for p in stale(root, reports)] == [], 'run `soundlm report`'

def test_something_is_quoted():
    "A mechanism that nothing uses would pass every test"
    assert len(quotes((root/'README.md').read_text('utf-8')))>=5

def test_a_changed_quote_is_noticed(reports, tmp_path):
    text = (root/'README.md').read_text('utf-8')
    where,said = quotes(text)[0]
    (tmp_path/'README.md').write_text(text.replace(f'-->{said}<!--/-->', '-->99.9<!--/-->', 1))
    assert [p.name for p in stale(tmp_path, reports)] == ['README.md']

def test_a_changed_json_is_noticed(tmp_path):
    for f in files[:1]: shutil.copy(f, tmp_path/f.name)
    j = tmp_path/files[0].name
    data = json.loads(j.read_text()); data['meta']['n'] += 1; j.write_text(json.dumps(data))
    with pytest.raises(SoundlmError, match='changed after it was written'): read_reports(tmp_path)

def test_the_command_agrees():
    "`soundlm report --check` on the repository itself"
    done = subprocess.run([sys.executable, '-c', 'from soundlm.cli import main; main()', 'report', '--check', '--out', str(folder)], capture_output=True, text=True, cwd=root)
    assert done.returncode==0, done.stderr[-600:]

def test_every_report_is_in_the_overview(reports):
    text = (folder/'README.md').read_text('utf-8')
    for k in reports: assert f']({k}.md)' in text
    for name in re.findall(r'\(plots/([\w.-]+\.png)\)', text): assert (folder/'plots'/name).exists()

def test_packing_goes_round():
    value = dict(rows=[dict(a=(1.,.5,1.5), b=[1,2,3], c=None, d='x', e=dict(f=(0,0,0)))])
    assert unpacked(json.loads(json.dumps(packed(value)))) == value

def test_checksum_does_not_depend_on_the_order_of_keys():
    a = dict(meta=dict(x=1, y=2, checksum='?'), rows=[dict(p=1, q=2)])
    b = dict(meta=dict(y=2, x=1), rows=[dict(q=2, p=1)])
    assert checksum(a)==checksum(b)!=checksum(dict(meta=dict(x=1, y=3), rows=[dict(p=1, q=2)]))

@pytest.mark.parametrize('text', ['', 'not json', '[]', '{"meta": 3, "rows": []}', '{"rows": []}', '{"meta": {}, "rows": []}'])
def test_what_is_no_report(tmp_path, text):
    (tmp_path/'x.json').write_text(text)
    with pytest.raises(SoundlmError): read_report(tmp_path/'x.json')

def test_quotes_in_backticks_are_examples():
    assert requote('write `<!--= a | b | c | d | e -->1<!--/-->`', {}) == 'write `<!--= a | b | c | d | e -->1<!--/-->`'

def test_rebuild_mends_and_says_so(tmp_path):
    write_report({'S':[dict(a=(.5,.4,.6))]}, tmp_path/'reports'/'toy' if (tmp_path/'reports').mkdir() is None else None, dict(title='Toy', command='x', n=1, seed=0))
    (tmp_path/'README.md').write_text('It is <!--= toy | S | #0 | a | .1f -->0.9<!--/-->.')
    changed = rebuild(tmp_path/'reports', tmp_path)
    assert {p.name for p in changed} == {'README.md'} and 'It is <!--= toy | S | #0 | a | .1f -->0.5<!--/-->.' == (tmp_path/'README.md').read_text()
    assert rebuild(tmp_path/'reports', tmp_path)==[]
