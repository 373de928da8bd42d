"""The style sheet of the page: light, readable on a phone and on paper."""

CSS = """
:root { --ink: #1d2129; --soft: #667080; --line: #e3e6eb; --right: #12813f; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 3rem; max-width: 70rem; background: #fff;
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
    "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums;
}
h1 { margin: 0 0 1.2rem; font-size: 1.75rem; line-height: 1.2; font-weight: 650;
  overflow-wrap: anywhere; }
h2 { margin: 0 0 .4rem; font-size: 1.2rem; font-weight: 650; }
h3 { margin: 1.6rem 0 .6rem; font-size: .95rem; font-weight: 600; }
p { margin: 0 0 .5rem; }
a { color: inherit; }
small { color: var(--soft); font-size: .8rem; }
code { font: .85em ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
section { padding-top: 2.6rem; }
.kicker { margin-bottom: .2rem; color: var(--soft); font-size: .8rem; }
.lead, .note { max-width: 52rem; color: var(--soft); font-size: .88rem; }
.lead { margin-bottom: 1rem; }
.lead .run, .note .run, .note b { color: var(--ink); }
.legend .run { margin-right: .9rem; }
.run { display: inline-flex; align-items: baseline; font-weight: 600;
  overflow-wrap: anywhere; }
.spot { display: inline-block; flex: none; width: .65em; height: .65em;
  margin-right: .4em; border-radius: 50%; }
.spot.square { border-radius: 0; }
.spot.diamond { border-radius: 0; transform: rotate(45deg) scale(.85); }
.absent { margin: 0 0 .6rem; padding: .6rem .8rem; border-left: 3px solid #d9a400;
  background: #fdf8e8; font-size: .88rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-top: 1.6rem;
  padding: .6rem 0; border: solid var(--line); border-width: 1px 0; font-size: .85rem; }
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--ink); text-decoration: underline; }

.wide { overflow-x: auto; margin-bottom: .8rem; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .28rem 1.6rem .28rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
tbody th { color: var(--soft); font-weight: 400; white-space: nowrap; }
.behind tbody th { min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }
.facts td { min-width: 9rem; }
.settings td, .settings th { padding-block: .15rem; }
.results th[scope=row] { padding-left: .8rem; color: var(--ink); }
.results td, .results th[scope=col] { padding: .28rem 0 .28rem 2rem; text-align: right;
  white-space: nowrap; }
.results th[scope=col] { min-width: 7.5rem; max-width: 13rem; white-space: normal; }
.results .group th { padding-top: 1.1rem; font-weight: 600; color: var(--ink); }
.paper, .matrix, .behind { font-size: .84rem; }
.paper th, .paper td { padding: .2rem .55rem .2rem 0; text-align: right;
  white-space: nowrap; }
.paper .first { padding-left: 1.1rem; }
.paper thead th[scope=colgroup] { padding-left: 1.1rem; text-align: center;
  font-weight: 600; }
.paper thead th[scope=colgroup], .matrix thead th { vertical-align: bottom; }
.paper th[scope=row], .matrix .name { position: sticky; left: 0; background: #fff;
  background-clip: padding-box; }
.paper thead th { color: var(--soft); font-weight: 500; }
.paper th[scope=row] { padding-right: 1.2rem; text-align: left; }
.paper tbody th[scope=row] { min-width: 6rem; max-width: 18rem; white-space: normal;
  overflow-wrap: anywhere; }
.paper .printed td, .paper .difference td { color: var(--soft); }
.paper .ours th, .paper .ours td { border-bottom-color: transparent; font-weight: 600;
  color: var(--ink); }
.matrix th, .matrix td { padding: .2rem 0 .2rem 1.4rem; text-align: right; }
.matrix td { white-space: nowrap; }
.matrix thead th { max-width: 8rem; color: var(--soft); font-weight: 500; }
.matrix .name { padding-left: 0; text-align: left; color: var(--ink);
  overflow-wrap: normal; }
.matrix .of-run { text-align: left; }
.matrix .of-run .run { font-weight: 400; color: var(--ink); }
.matrix .inner { border-bottom-color: transparent; }
.behind td:nth-child(2) { white-space: nowrap; }
details ul { margin: .4rem 0 0; padding-left: 1.2rem; }
details { margin-top: .6rem; font-size: .88rem; }
summary { color: var(--soft); cursor: pointer; }
details .wide { margin-top: .6rem; }

.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.2rem, 1fr));
  gap: .8rem; margin-top: .8rem; }
.cards.single { grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
.card { padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 8px; }
.card h3 { margin: 0 0 .35rem; color: var(--soft); font-size: .82rem; font-weight: 500; }
.value { display: flex; justify-content: space-between; align-items: baseline;
  gap: .8rem; margin: 0; }
.value .run { min-width: 0; font-size: .82rem; font-weight: 400; }
.value b { font-size: 1.2rem; font-weight: 650; white-space: nowrap; }
.value b:only-child { font-size: 1.7rem; line-height: 1.3; }
.change { color: var(--soft); font-size: .82rem; }
.change b { font-size: .95rem; font-weight: 500; }
.card small { display: block; margin-top: .2rem; }

figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr));
  gap: 1.4rem 1.6rem; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline;
  margin-bottom: .25rem; font-size: .82rem; }
figcaption span:first-child { margin-right: auto; font-weight: 600; }
figcaption b { font-weight: 500; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr));
  gap: 1.6rem; }
.maps figure { max-width: 36rem; }
.drawn { display: grid; grid-template-columns: minmax(0, 1fr); gap: 1.6rem; }
.drawn img { width: auto; max-width: 100%; }
.drawn + .note { margin-top: .8rem; }

.query { display: grid; grid-template-columns: 7.5rem minmax(0, 1fr); gap: 1.2rem;
  padding: .9rem 0; border-top: 1px solid var(--line); break-inside: avoid; }
.own img { display: block; width: 4.5rem; height: auto; }
.own p { margin: .35rem 0 0; font-size: .85rem; line-height: 1.3; font-weight: 600;
  overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: 9.5rem minmax(0, 1fr); gap: .8rem;
  align-items: center; }
.row + .row { margin-top: .5rem; }
.who { display: flex; flex-direction: column; margin: 0; font-size: .82rem;
  line-height: 1.35; }
ol { margin: 0; padding: 0; list-style: none; }
.hits { display: grid; grid-template-columns: repeat(10, minmax(0, 4.6rem)); gap: .3rem; }
.hits li { position: relative; padding: 3px; border: 2.5px solid transparent;
  border-radius: 8px; }
.hits img { display: block; width: 100%; height: auto; }
.hits .right { border-color: var(--right); }
.near { grid-template-columns: repeat(8, minmax(0, 4.2rem)); }
.near .both::after { content: ""; position: absolute; bottom: -4px; left: 50%;
  width: 6px; height: 6px; margin-left: -3px; border-radius: 50%;
  background: var(--ink); }
.columns { display: flex; flex-wrap: wrap; gap: 1.2rem 2.4rem; }
.columns .row { display: block; flex: 1 1 16rem; max-width: 26rem; margin: 0; }
.columns .who { flex-direction: row; gap: .8rem; align-items: baseline;
  margin-bottom: .3rem; }
.captions { counter-reset: place; font-size: .85rem; line-height: 1.5; }
.captions li { display: flex; gap: .6rem; justify-content: space-between; }
.captions li > :first-child { flex: 1; overflow-wrap: anywhere; }
.captions .right b { color: var(--right); }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line);
  color: var(--soft); font-size: .8rem; }

@media (max-width: 44rem) {
  .drawn img { max-width: none; }
  body { padding: 1.4rem 1rem 2rem; }
  th, td { padding-right: 1rem; }
  .facts td { min-width: 7rem; }
  tbody th { white-space: normal; overflow-wrap: anywhere; }
  .results td, .results th[scope=col] { min-width: 5.5rem; padding-left: .6rem; }
  .results th[scope=row] { padding: .28rem 0; line-height: 1.3; }
  .matrix th, .matrix td { padding-left: .7rem; }
  .matrix .of-run { min-width: 6rem; }
  .paper th[scope=row] { padding-right: .4rem; }
  .paper tbody th[scope=row] { max-width: 8rem; }
  .query { grid-template-columns: minmax(0, 1fr); gap: .7rem; }
  .own { display: flex; gap: .8rem; align-items: center; }
  .own p { margin: 0; }
  .own img { width: 3.5rem; }
  .row { grid-template-columns: minmax(0, 1fr); gap: .3rem; }
  .who { flex-direction: row; gap: .8rem; align-items: baseline; }
  .hits { grid-template-columns: repeat(5, minmax(0, 1fr)); }
  .near { grid-template-columns: repeat(4, minmax(0, 1fr)); row-gap: .6rem; }
}
@media print {
  body { max-width: none; padding: 0; }
  nav { display: none; }
  .spot { print-color-adjust: exact; }
}
"""
