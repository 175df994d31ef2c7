"The survey: every row sourced, every number a number, our own rows nothing but what zoo and reports say"
import csv, dataclasses, json, math, shutil

import pytest

from soundlm import hub
from soundlm.core import SoundlmError, zoo_dir
from soundlm.literature import (System, classify, codec_rates, count_parameters, kinds, literature_path, our_row, ours, parse_cell,
    problems, rates_plot, read_literature, results_of, survey_table, timeline)
from tree import root

rows = read_literature()
each = pytest.mark.parametrize('s', rows, ids=lambda s: s.system)
mission = 'Jukebox', 'MusicLM', 'AudioLM', 'MusicGen small'
later = ('MAGNeT small (30 s)', 'MusicGen-Style', 'JASCO 1B', 'Stable Audio Open 1.0', 'AudioLDM 2', 'Riffusion', 'ACE-Step', 'YuE', 'DiffRhythm', 'Moshi', 'Orpheus',
    'Qwen3-TTS 1.7B', 'Mini-Omni', 'LLaMA-Omni 2 7B', 'CosyVoice 2')

def test_who_is_there():
    names = [r.system for r in rows]
    assert len(rows) >= 19 and set(mission) | set(later) <= set(names)
    assert {'music','speech'} <= {r.track for r in rows}
    assert len(rows) == len(set(names))
    dates = [(r.year, r.month) for r in rows]
    assert dates == sorted(dates), 'the file is in order of time'

@each
def test_row(s):
    assert problems(s) == []
    assert s.source.startswith(('arXiv:','https://'))
    assert s.licence_code and s.licence_weights and s.comparable and s.strengths and s.weaknesses

@each
def test_numbers_are_numbers(s):
    for f in dataclasses.fields(System):
        v = getattr(s, f.name)
        if f.type==float|None: assert v is None or isinstance(v, float) and math.isfinite(v)
        elif f.type==int|None: assert v is None or isinstance(v, int)
        else: assert isinstance(v, str) and '\n' not in v and '|' not in v

@each
def test_rates_follow(s):
    if s.tokens_per_second is None: return
    assert s.type not in ('diffusion','flow')
    product = s.frame_rate*s.codebooks
    assert math.isclose(s.tokens_per_second, product, rel_tol=.01) or s.rate_note
    if s.steps_per_second: assert s.steps_per_second <= s.tokens_per_second

def test_known_rates():
    by = {r.system: r for r in rows}
    assert by['Jukebox'].tokens_per_second == sum(44100/h for h in (8,32,128))
    assert by['MusicGen large'].tokens_per_second == 200 and by['MusicGen large'].steps_per_second == 50
    assert by['Orpheus'].tokens_per_second == 7*24000/2048 == by['Mini-Omni'].tokens_per_second
    assert [by[f'MusicGen {k}'].fad_musiccaps for k in ('small','medium','large','melody')] == [4.88, 5.14, 5.48, 4.93]

# our own rows
reports = root/'reports'
mine = ours(reports)

@pytest.mark.parametrize('s', mine, ids=lambda s: s.system)
def test_ours_is_what_the_zoo_says(s):
    name = s.system.split()[0]
    folder = zoo_dir()/name
    config = json.loads((folder/'config.json').read_text())
    codec = json.loads((zoo_dir()/config['parts']['codec']['name']/'config.json').read_text())
    assert round(s.parameters_m*1e6) == count_parameters(folder)
    assert s.tokens_per_second == sum(codec['sample_rate']/codec['hop']/k for k in codec['strides'])
    assert s.sample_rate == codec['sample_rate'] and s.codebook_size == codec['codebook_size']
    card = (folder/'README.md').read_text('utf-8')
    assert f'license: {s.licence_weights}' in card and s.data in card
    assert problems(s) == []
    if 'parameters | ' in card: assert f'| parameters | {round(s.parameters_m*1e6):,} |' in card

def numbers(v):
    if isinstance(v, dict): return [x for o in v.values() for x in numbers(o)]
    if isinstance(v, (list,tuple)): return [x for o in v for x in numbers(o)]
    return [v] if isinstance(v, (int,float)) and not isinstance(v, bool) else []

@pytest.mark.parametrize('name', ['music-a','music-b','omni'])
def test_results_are_those_of_the_reports(name):
    sha = hub.weights_sha(zoo_dir()/name)
    found = results_of(name, sha, reports)
    assert found, f'no report knows {name} ({sha}): measure it again'
    for o in found:
        data = json.loads((reports/f"{o['report']}.json").read_text())
        assert name in json.dumps(data) or sha in json.dumps(data)
        known = set(numbers(data['rows']))
        assert set(numbers([o['value']])) <= known and o['n'] in known | {data['meta']['n']}

def write(folder, stem, rows, **meta):
    from soundlm.metrics import write_report
    write_report(rows, folder/stem, dict(title='T', command='none', n=3, seed=0)|meta)

def test_evaluation_comes_in_when_it_exists(tmp_path):
    sha = hub.weights_sha(zoo_dir()/'music-b')
    assert results_of('music-b', sha, tmp_path) == []
    assert our_row(zoo_dir()/'music-b', tmp_path).other_metrics == ''
    rows = {'In words':[dict(verdict='fine')], 'Systems':[dict(system='music-b', n=64, clap=.2), dict(system='music-b, guidance 3', n=64, clap=(.3,.2,.4), silent=0), dict(system='random codes', n=64, clap=.1)],
        'Distances to the references':[dict(system='music-b, guidance 3', embedding='clap-tiny (9864)', n=64, fad=(.5,.4,.6), fad_inf=None, kad=.1), dict(system='random codes', embedding='clap-tiny (9864)', n=64, fad=9.)],
        'Nats a code':[dict(model='music-b', music='its own caption', n=64, nll=(3.4,3.3,3.5)), dict(model='music-b', music='random codes', n=64, nll=9.)]}
    write(tmp_path, 'evaluation', rows, models=f'music-b ({sha})')
    found = results_of('music-b', sha, tmp_path)
    assert {o['measure']: (o['n'], o['value']) for o in found} == dict(clap=(64,(.3,.2,.4)), fad=(64,(.5,.4,.6)), kad=(64,.1), nll=(64,(3.4,3.3,3.5)))
    assert 'fad 0.5 [0.4, 0.6] (music-b, guidance 3, clap-tiny (9864), n = 64)' in our_row(zoo_dir()/'music-b', tmp_path).other_metrics
    assert results_of('music-b', '0'*12, tmp_path) == [] == results_of('music-a', sha, tmp_path)
    write(tmp_path, 'evaluation', [dict(anything=1)], models=f'music-b ({sha})')
    assert results_of('music-b', sha, tmp_path) == []

def test_other_weights_are_not_ours(tmp_path):
    write(tmp_path, 'fusion-guidance', {'Guidance, same prompts and seeds':[dict(guidance=3., n=96, style=.9)]}, model='music-b (000000000000)')
    assert results_of('music-b', hub.weights_sha(zoo_dir()/'music-b'), tmp_path) == []

def test_edited_report_is_refused(tmp_path):
    shutil.copy(reports/'omni.json', tmp_path)
    p = tmp_path/'omni.json'
    data = json.loads(p.read_text()); data['rows'][next(iter(data['rows']))][0]['digits'] = 7; p.write_text(json.dumps(data))
    with pytest.raises(SoundlmError, match='changed after it was written'): ours(tmp_path)

def test_codec_rates():
    assert codec_rates(dict(sampling_rate=32000, upsampling_ratios=[8,5,4,4], target_bandwidths=[2.2], codebook_size=2048))['codebooks'] == 4
    assert codec_rates(dict(sampling_rate=24000, encoder_rates=[2,4,8,8], vq_strides=[4,2,1], codebook_size=4096))['tokens_per_second'] == 82.03125

# files edited by hand
def edit(tmp_path, f):
    with open(literature_path(), newline='', encoding='utf-8') as i: table = list(csv.DictReader(i))
    names = list(table[0])
    names = f(table, names) or names
    p = tmp_path/'literature.csv'
    with open(p, 'w', newline='', encoding='utf-8') as o:
        w = csv.DictWriter(o, names, extrasaction='ignore'); w.writeheader(); w.writerows(table)
    return p

def setter(k, v): return lambda t,n: t[2].__setitem__(k, v)
bad = [('fad_musiccaps','14,8','a number with a point'), ('year','2022.5','a whole number'), ('year','','a year'), ('month','13','1 … 12'), ('track','musik','one of music'),
    ('type','gan','one of autoregressive'), ('domain','mel','one of waveform'), ('source','','arXiv'), ('source','trust me','arXiv'), ('licence_code','','something'),
    ('licence_weights',' ','something'), ('comparable','','something'), ('parameters_m','-3','more than 0'), ('parameters_m','nan','more than 0'), ('kld_musiccaps','inf','more than 0'),
    ('tokens_per_second','100','nothing for diffusion'), ('second_hand','everything','names of columns'), ('second_hand','','not read at the source'), ('metrics_source','','where the numbers stand'), ('checked','yes','one of read')]
@pytest.mark.parametrize('column,value,want', bad)
def test_bad_cells_are_named(tmp_path, column, value, want):
    with pytest.raises(SoundlmError) as e: read_literature(edit(tmp_path, setter(column, value)))
    text = str(e.value)
    assert 'Riffusion' in text and f'column {column}' in text and want in text and 'line 4' in text

def test_rate_without_reason(tmp_path):
    def f(t, n):
        o = next(r for r in t if r['system']=='Orpheus'); o['rate_note'] = ''
    with pytest.raises(SoundlmError, match='Orpheus.*rate_note.*frame_rate × codebooks'): read_literature(edit(tmp_path, f))

def test_bad_files(tmp_path):
    with pytest.raises(SoundlmError, match="no column 'source'"): read_literature(edit(tmp_path, lambda t,n: [k for k in n if k!='source']))
    with pytest.raises(SoundlmError, match="unknown column 'mos'"): read_literature(edit(tmp_path, lambda t,n: n+['mos']))
    with pytest.raises(SoundlmError, match="'Jukebox' more than once"): read_literature(edit(tmp_path, lambda t,n: t.append(t[0])))
    with pytest.raises(SoundlmError, match='holds no system'): read_literature(edit(tmp_path, lambda t,n: t.clear()))
    with pytest.raises(SoundlmError, match='Cannot read'): read_literature(tmp_path/'none.csv')
    p = tmp_path/'b.csv'
    p.write_bytes(b''); pytest.raises(SoundlmError, read_literature, p)
    p.write_bytes('system;year\nä;1\n'.encode('latin-1')); pytest.raises(SoundlmError, read_literature, p)
    text = literature_path().read_text('utf-8')
    p.write_text(text.replace('14.8,', '14,8,', 1), 'utf-8')
    with pytest.raises(SoundlmError, match='line 4.*too many cells'): read_literature(p)
    p.write_text(text.splitlines()[0]+'\nJukebox,2020\n', 'utf-8')
    with pytest.raises(SoundlmError, match='line 2.*too few cells'): read_literature(p)

def test_spreadsheets_byte_order_mark(tmp_path):
    p = tmp_path/'bom.csv'
    p.write_text(literature_path().read_text('utf-8').replace('\n', '\r\n'), 'utf-8-sig', newline='')
    assert read_literature(p) == rows

def test_cells():
    assert parse_cell('year', ' 1999 ') == 1999 and parse_cell('frame_rate', '12.5') == 12.5 and parse_cell('codec', '') == ''

# tables and plots
def test_tables():
    t = survey_table(rows, ['system','tokens_per_second'])
    assert len(t.strip().splitlines()) == len(rows)+2
    with pytest.raises(SoundlmError, match='Did you mean'): survey_table(rows, 'sytem')
    boxes = classify(rows)
    assert {k for b in boxes for k in b} <= {'domain', *kinds}
    names = ', '.join(v for b in boxes for k,v in b.items() if k!='domain' and v).split(', ')
    assert sorted(names) == sorted(r.system for r in rows)

def test_plots():
    fig = timeline(rows, mine)
    said = {t.get_text() for t in fig.axes[0].texts}
    assert {r.system for r in rows if r.parameters_m} <= said
    fig = rates_plot(rows+mine)
    assert len(fig.axes[0].get_yticklabels()) == sum(1 for r in rows+mine if r.tokens_per_second)
    with pytest.raises(SoundlmError, match='no system'): rates_plot([r for r in rows if r.type=='diffusion'])
