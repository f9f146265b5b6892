"""Look and behaviour of the report page: one style sheet for light and dark screens, and a filter for its pictures."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#f6f5f2;--card:#fff;--ink:#22211f;--soft:#6b6862;--line:#e3e0da;--bar:#2f6fdb;
--warn:#b4610a;--warn-bar:#e08a1e;--warn-back:#fdf3e3;--bad:#b3261e;--bad-back:#fdecea;--good:#1f7a43;--good-back:#e6f4ea;
--tag:#eef2fb;--tag-ink:#2a4f96}
@media (prefers-color-scheme:dark){:root{--page:#161718;--card:#1f2123;--ink:#e9e7e3;--soft:#a09d97;--line:#34373a;
--bar:#6ea0ff;--warn:#f0b465;--warn-bar:#e69a3a;--warn-back:#33291a;--bad:#ff9a92;--bad-back:#3a2220;--good:#7fd3a0;
--good-back:#1d3225;--tag:#293349;--tag-ink:#b9cdf8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",
"Hiragino Sans","Yu Gothic UI","Meiryo","PingFang SC","Microsoft YaHei","Malgun Gothic","Apple SD Gothic Neo",
"Noto Sans CJK JP","Noto Sans CJK SC","Noto Sans CJK KR",sans-serif}
:lang(zh){font-family:system-ui,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
:lang(ja){font-family:system-ui,"Hiragino Sans","Yu Gothic UI","Meiryo","Noto Sans CJK JP",sans-serif}
:lang(ko){font-family:system-ui,"Apple SD Gothic Neo","Malgun Gothic","Noto Sans CJK KR",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 22px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:38px 0 12px}
h2 small,h1 small{font-weight:400;color:var(--soft);font-size:14px}
p{margin:0 0 10px}
.soft{color:var(--soft)}
code,.num{font-variant-numeric:tabular-nums}
.verdict{display:inline-block;margin:10px 0 18px;padding:5px 14px;border-radius:99px;font-weight:600}
.verdict.good{background:var(--good-back);color:var(--good)}
.verdict.bad{background:var(--bad-back);color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px}
.tile,.card,.picture,.batch{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:12px 16px}
.tile b{display:block;font-size:23px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.card{padding:16px 18px}
ul.list{list-style:none;margin:0;padding:0;display:grid;gap:8px}
ul.list li{padding:10px 14px;border-radius:10px;overflow-wrap:anywhere}
li.bad{background:var(--bad-back);border-left:4px solid var(--bad)}
li.warn{background:var(--warn-back);border-left:4px solid var(--warn-bar)}
li.bad .where{font-weight:600}
li.bad .fix{display:block;color:var(--soft)}
.chart{display:grid;gap:7px}
.row{display:grid;grid-template-columns:34px 96px minmax(60px,1fr) 400px;gap:12px;align-items:center}
.row svg{display:block;margin:auto}
.row .glyph{fill:none;stroke:var(--soft);stroke-width:1.5}
.row .name{font-weight:600;font-variant-numeric:tabular-nums}
.track{background:var(--line);border-radius:5px;height:18px;overflow:hidden}
.fill{display:block;height:100%;background:var(--bar);border-radius:5px}
.under .fill{background:var(--warn-bar)}
.row .count{font-variant-numeric:tabular-nums;font-size:14px}
.under .count em{color:var(--warn);font-style:normal;font-weight:600}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--soft);font-size:13px}
th,td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left}
tr:last-child td{border-bottom:0}
.scroll{overflow-x:auto}
.batches{display:grid;gap:14px}
.batch{padding:12px 16px}
.batch h3{margin:0 0 10px;font-size:14px;font-weight:600}
.uses{display:flex;flex-wrap:wrap;gap:16px}
.use{width:190px;font-size:13px;overflow-wrap:anywhere}
.use img{display:block;max-width:100%;border-radius:8px;background:var(--line)}
@media (max-width:860px){.row{grid-template-columns:34px 96px minmax(60px,1fr)}.row .count{grid-column:2/-1}}
.use .caption{max-height:9em;overflow:auto}
.use b{display:block;margin-top:6px;font-weight:600}
.bar{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:10px 18px;align-items:center;padding:10px 0;
background:var(--page)}
.bar input[type=search]{flex:1 1 240px;max-width:420px;padding:8px 12px;font:inherit;color:inherit;
background:var(--card);border:1px solid var(--line);border-radius:9px}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:14px}
.picture{display:grid;grid-template-columns:160px minmax(0,1fr);gap:14px;padding:14px;content-visibility:auto;
contain-intrinsic-size:auto 230px}
.picture[hidden]{display:none}
.thumb{display:flex;flex-direction:column;gap:8px;align-items:center;justify-content:flex-start}
.thumb svg,.thumb img{max-width:160px;max-height:170px;border-radius:8px;display:block}
.thumb img{width:80px;border:1px solid var(--line)}
.shade{fill:#000;fill-opacity:.5;fill-rule:evenodd}
.frame{fill:none;stroke:#ffd23f;vector-effect:non-scaling-stroke;stroke-width:2}
.none{width:120px;height:90px;border:1px dashed var(--line);border-radius:8px;color:var(--soft);font-size:12px;
display:grid;place-items:center;text-align:center}
.picture h3{margin:0 0 6px;font-size:15px;overflow-wrap:anywhere;line-height:1.3}
.tags{display:flex;flex-wrap:wrap;gap:5px;margin:0 0 7px}
.tag{background:var(--tag);color:var(--tag-ink);border-radius:99px;padding:1px 9px;font-size:12px}
.tag.warn{background:var(--warn-back);color:var(--warn)}
.size{font-variant-numeric:tabular-nums;font-size:13px;color:var(--soft);margin:0 0 7px}
.size b{color:var(--ink);font-weight:600}
.caption{overflow-wrap:anywhere;margin:0}
.caption.empty{color:var(--soft);font-style:italic}
.drawn{margin:7px 0 2px;font-size:12px;color:var(--soft)}
.draws{margin:0;padding-left:22px;font-size:13px;color:var(--soft);overflow-wrap:anywhere}
footer{margin-top:40px;color:var(--soft);font-size:13px}
@media (max-width:620px){.picture{grid-template-columns:1fr}.thumb{align-items:flex-start}}
@media print{.bar{display:none}.picture{break-inside:avoid}}
"""

SCRIPT = """
const words = document.getElementById('words'), only = document.getElementById('only');
const shown = document.getElementById('shown'), all = [...document.querySelectorAll('.picture')];
const texts = all.map(one => one.textContent.toLowerCase());
function filter() {
  const wanted = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let count = 0;
  all.forEach((one, number) => {
    const fits = wanted.every(word => texts[number].includes(word)) &&
      (!only.checked || one.querySelector('.tag.warn') !== null);
    one.hidden = !fits;
    count += fits;
  });
  shown.textContent = count + ' of ' + all.length + ' shown';
}
if (words) { words.addEventListener('input', filter); only.addEventListener('change', filter); }
"""
