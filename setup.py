"""Packaging. Everything comes from settings.ini, so that no fact is in two places."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='], interpolation=None)
parser.read(here / 'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

repository = f'https://github.com/{cfg["user"]}/{cfg["repo"]}'
documentation = cfg['doc_host'] + cfg['doc_baseurl']
statuses = {
    '1': '1 - Planning',
    '2': '2 - Pre-Alpha',
    '3': '3 - Alpha',
    '4': '4 - Beta',
    '5': '5 - Production/Stable',
}
extras = {
    key.removesuffix('_requirements'): value.split()
    for key, value in cfg.items()
    if key.endswith('_requirements')
}
extras['dev'] = extras['book'] + extras['dev']  # to run the notebooks, and to work on them


def absolute_links(readme: str) -> str:
    "The README with absolute links, because a package index shows it without the repository."
    raw = repository.replace('github.com', 'raw.githubusercontent.com')
    readme = re.sub(
        r'(!\[[^]]*\]\(|<img src=\")(?![a-z]+:|#)', rf'\g<1>{raw}/{cfg["branch"]}/', readme
    )
    # a link, also one around a picture, as badges have it
    link = r'((?<!!)\[(?:!\[[^]]*\]\([^)]*\)|[^]])*\]\()(?![a-z]+:|#)'
    return re.sub(link, rf'\g<1>{repository}/blob/{cfg["branch"]}/', readme)


setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    license='Apache-2.0',
    description=cfg['description'],
    long_description=absolute_links((here / 'README.md').read_text(encoding='utf-8')),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=repository,
    project_urls={
        'Documentation': documentation,
        'Source': repository,
        'Issues': f'{repository}/issues',
        'Changes': f'{repository}/blob/{cfg["branch"]}/CHANGELOG.md',
    },
    keywords=cfg['keywords'].split(),
    classifiers=[
        f'Development Status :: {statuses[cfg["status"]]}',
        'Intended Audience :: Education',
        f'Intended Audience :: {cfg["audience"]}',
        f'Natural Language :: {cfg["language"]}',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        *(
            f'Programming Language :: Python :: 3.{minor}'
            for minor in range(int(cfg['min_python'].split('.')[1]), 14)
        ),
        'Topic :: Education',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=[cfg['lib_path'], f'{cfg["lib_path"]}.*']),
    package_data={cfg['lib_path']: ['py.typed']},
    python_requires=f'>={cfg["min_python"]}',
    install_requires=cfg['requirements'].split(),
    extras_require=extras,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f'{cfg["lib_name"]}={cfg["lib_path"]}._modidx:d'],
    },
    zip_safe=False,
)
