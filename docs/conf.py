"Sphinx settings for `soundlm_docs`; names and URLs come from settings.ini"
from configparser import ConfigParser
from pathlib import Path

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).parent.parent/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

project, author, release = cfg['title'], cfg['author'], cfg['version']
copyright = cfg['copyright']
language = 'en'
extensions = ['myst_nb', 'sphinx-mathjax-offline']
root_doc = 'index'
exclude_patterns = ['**.ipynb_checkpoints']

nb_execution_mode = 'off' # pages show the outputs that were committed
nb_merge_streams = True
nb_render_markdown_format = 'myst' # so that tables in outputs are tables
myst_enable_extensions = ['dollarmath', 'amsmath', 'colon_fence', 'deflist']
myst_heading_anchors = 3
myst_links_external_new_tab = True
# A show of one hidden widget or ANSI colour is no reason to fail a build; a broken link is
suppress_warnings = ['mystnb.unknown_mime_type', 'misc.highlighting_failure', 'myst.header']

html_theme = 'furo'
html_title = f"{cfg['title']} {cfg['version']}"
html_static_path = ['static']
html_css_files = ['site.css']
html_copy_source = False
html_show_sphinx = False
html_theme_options = dict(source_repository=cfg['git_url'], source_branch=cfg['branch'], top_of_page_buttons=[],
    footer_icons=[dict(name='GitHub', url=cfg['git_url'], html='source', **{'class':''})])
