"The repository around the notebooks: one place for names, requirements that fit their constraints, a site that works offline"
import importlib, json, os, re, runpy, stat, subprocess, sys
from configparser import ConfigParser

import pytest

from soundlm import build
from tree import cells, folders, notebooks, root

pytest.importorskip('nbdev')
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

@pytest.fixture(scope='module')
def dist():
    "What setup.py hands to setuptools"
    import setuptools
    got,orig,here = {},setuptools.setup,os.getcwd()
    setuptools.setup = lambda **kw: got.update(kw)
    os.chdir(root)
    try: runpy.run_path(str(root/'setup.py'))
    finally:
        setuptools.setup = orig
        os.chdir(here)
    return got

def constraints():
    lines = [l for l in (root/'constraints.txt').read_text().splitlines() if l and l[0]!='#']
    assert all(re.fullmatch(r'[\w.-]+==[\w.+-]+', l) for l in lines)
    return {norm(n):v for n,v in (l.split('==') for l in lines)}
def norm(n): return re.sub(r'[-_.]+', '-', n).lower()

# requirements
def test_settings_are_the_source(dist):
    assert dist['name']==cfg['lib_name'] and dist['version']==cfg['version'] and dist['url']==cfg['git_url']
    assert dist['python_requires']=='>=3.11'
    assert importlib.import_module('soundlm').__version__==cfg['version']

def test_extras(dist):
    assert set(dist['extras_require']) == {'dev','judges','speech','gguf','llamacpp','qwen3tts','wandb'}
    core = {norm(re.match(r'[\w.-]+', r)[0]) for r in dist['install_requires']}
    assert 'espeakng-loader' not in core and 'nbdev' not in core

def test_torch_is_a_lower_bound_only(dist):
    assert [r for r in dist['install_requires'] if r.startswith('torch')][0].startswith('torch>=')
    assert not re.search('torch.*,|torch==', ' '.join(r for r in dist['install_requires'] if r.startswith('torch')))

def test_constraints_meet_the_requirements(dist):
    from packaging.requirements import Requirement
    have,extras = constraints(),dist['extras_require']
    for r in map(Requirement, dist['install_requires'] + [o for k in ('dev','speech','gguf','wandb') for o in extras[k]]):
        assert norm(r.name) in have, f'{r.name} has no constraint'
        assert have[norm(r.name)] in r.specifier, f'{r} is not met by {have[norm(r.name)]}'

def test_constraints_fit_any_machine():
    have = constraints()
    assert have['torch']=='2.13.0'
    assert [k for k,v in have.items() if '+' in v or k.startswith(('nvidia','triton'))] == []

def test_scripts_exist(dist):
    for s in dist['entry_points']['console_scripts']:
        mod,f = s.split('=')[1].split(':')
        if (root/(mod.replace('.','/')+'.py')).exists(): assert callable(getattr(importlib.import_module(mod), f))
    assert {'soundlm','soundlm_prepare','soundlm_docs'} <= {s.split('=')[0] for s in dist['entry_points']['console_scripts']}

def test_imports_are_required(dist):
    "Every package that a module imports is a requirement, or is imported by name in an extra"
    import ast
    from importlib.metadata import packages_distributions
    owners = packages_distributions()
    known = {norm(re.match(r'[\w.-]+', r)[0]) for r in dist['install_requires'] + sum(dist['extras_require'].values(), [])}
    brought = {'numpy','pandas','pyarrow','scipy','scikit-learn','ipython','setuptools','fsspec','httpx','requests','pillow','ray','ipywidgets','packaging','nbformat'}
    missing = {}
    for p in (root/'soundlm').rglob('*.py'):
        for o in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            names = [a.name for a in o.names] if isinstance(o, ast.Import) else [o.module] if isinstance(o, ast.ImportFrom) and not o.level else []
            for top in {n.split('.')[0] for n in names} - set(sys.stdlib_module_names) - {'soundlm'}:
                if not {norm(d) for d in owners.get(top, [top])} & (known|brought): missing[top] = p.name
    assert missing == {}

# one place for the owner
def test_owner_stands_in_settings_alone():
    owner = re.compile(rf"github\.com(?:/github)?/{cfg['user']}/{cfg['repo']}\b|{cfg['user']}\.github\.io")
    made = {'README.md', 'soundlm/_modidx.py'} # both are written from settings.ini
    bad = []
    for p in notebooks:
        bad += [f'{p.name}: {c.source[:60]}' for c in cells(p) if owner.search(c.source) and not build.is_colab(dict(cell_type=c.kind, source=c.source))]
    for p in root.rglob('*'):
        if p.suffix in ('.py','.md','.txt','.yml','.toml','.ini') and p.is_file() and not any(o.startswith(('.venv','_','build')) or o in ('.git','node_modules') for o in p.relative_to(root).parts[:-1]):
            rel = p.relative_to(root).as_posix()
            if rel not in made|{'settings.ini'} and owner.search(p.read_text(encoding='utf-8')): bad.append(rel)
    assert bad == []

# commands
def test_make_targets():
    text = (root/'Makefile').read_text()
    for t in ('demo','test','prepare','docs','bench','clean'): assert re.search(rf'^{t}:', text, re.M), t

def test_make_is_self_sufficient():
    res = subprocess.run(['make','-n','demo','VENV=no-such-environment'], cwd=root, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    steps = res.stdout
    assert steps.index('-m venv') < steps.index('pip install') < steps.index('soundlm demo')

@pytest.mark.skipif(os.name=='nt', reason='file modes')
def test_ci_is_executable():
    run = root/'.ci'/'run'
    assert run.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(['bash','-n',str(run)]).returncode==0

# check finds what it should
def test_check_sees_an_edited_module(tmp_path):
    a,b = tmp_path/'a',tmp_path/'b'
    for o in a,b:
        (o/'soundlm').mkdir(parents=True)
        (o/'soundlm'/'x.py').write_text('x = 1\n')
    assert build.differing(a,b)==[]
    (b/'soundlm'/'x.py').write_text('x = 2\n')
    (a/'soundlm'/'orphan.py').write_text('')
    assert build.differing(a,b)==['soundlm/orphan.py','soundlm/x.py']

def test_copy_leaves_exported_modules_out(tmp_path):
    build.copy_sources(root, tmp_path)
    assert not (tmp_path/'soundlm'/'build.py').exists() and (tmp_path/'nbs'/'90_build.ipynb').exists()

def test_write_is_stable(tmp_path):
    for p in notebooks:
        q = tmp_path/p.name
        build.write(build.read(p), q)
        assert q.read_text(encoding='utf-8')==p.read_text(encoding='utf-8'), f'{p.name} was not cleaned'

# the site
@pytest.fixture(scope='module')
def site():
    if not (root/'_docs'/'index.html').exists(): pytest.skip('needs the rendered site: run `make docs`')
    return root/'_docs'

def test_every_notebook_has_a_page(site):
    assert [p.name for p in notebooks if not (site/f'{build.page_name(p.name)}.html').exists()] == []

def test_site_is_offline(site):
    "No script, style sheet or font comes from elsewhere"
    bad = []
    for p in site.glob('*.html'):
        text = p.read_text(encoding='utf-8')
        bad += [f'{p.name}: {u}' for u in re.findall(r'<(?:script|link)[^>]+(?:src|href)="(https?:[^"]+)"', text) if 'canonical' not in u]
    assert bad == []

def test_math_is_there(site):
    pages = [p.read_text(encoding='utf-8') for p in site.glob('*.html')]
    if any('class="math' in t for t in pages):
        scripts = {s.split('?')[0] for t in pages for s in re.findall(r'<script[^>]+src="([^"]*mathjax[^"]*)"', t, re.I)}
        assert scripts and all((site/s).exists() for s in scripts)

def test_search_knows_the_exports(site):
    index = (site/'searchindex.js').read_text(encoding='utf-8').lower()
    for word in ('melcodec','encodec','delay'): assert word in index

def test_players_survive(site):
    have = {p for p in notebooks if any('<audio ' in ''.join(o.get('data', {}).get('text/html', '')) for c in cells(p) for o in c.outputs)}
    for p in have: assert '<audio ' in (site/f'{build.page_name(p.name)}.html').read_text(encoding='utf-8'), p.name

def test_links_inside_the_site(site):
    "Every relative link of a page leads to a file of the site"
    bad = set()
    for p in site.glob('*.html'):
        for u in re.findall(r'<a [^>]*href="([^"#?:]+)(?:#[^"]*)?"', p.read_text(encoding='utf-8')):
            if not (site/u).exists(): bad.add(f'{p.name} → {u}')
    assert bad == set()
