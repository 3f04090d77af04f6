"""The look of the report: one style sheet, light and dark."""

CSS = """
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1d2026;--soft:#646b78;--rule:#e4e5e9;--grid:#eceef1;--right:#2563a8;
--wrong:#cf4a2c;--good:#19793f;--bad:#b3341a;--s0:#2563a8;--s1:#d9692a;--s2:#2d8a57;--s3:#8a4fbf;--s4:#c22f5a;--s5:#16889c;--s6:#a27a0c;
--s7:#5b6472}
@media(prefers-color-scheme:dark){:root{--bg:#14161a;--card:#1c1f25;--ink:#e6e8ec;--soft:#9aa2b0;--rule:#30343d;--grid:#292d35;
--right:#5b9be0;--wrong:#ee7a58;--good:#62c98b;--bad:#f08a70;--s0:#68a5ea;--s1:#f0935a;--s2:#62c08d;--s3:#b98be6;--s4:#ee7699;
--s5:#52c0d3;--s6:#d6ae45;--s7:#a5adba}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1160px;margin:0 auto;padding:36px 24px 72px}
h1{font-size:28px;line-height:1.2;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:19px;margin:44px 0 14px}
h3{font-size:14px;margin:0 0 8px}
p{margin:0 0 10px}.soft{color:var(--soft)}.small{font-size:13px}
.badge{display:inline-block;font-size:12px;font-weight:600;padding:2px 9px;border-radius:20px;border:1px solid currentColor;
vertical-align:5px;margin-left:10px;color:var(--soft)}
.badge.done{color:var(--good)}.badge.failed{color:var(--bad)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:22px 0 0}
.tile,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:24px;line-height:1.25;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.tile.lead b{color:var(--right)}.tile span{display:block;color:var(--soft);font-size:13px}
.two{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:14px}
.uneven{grid-template-columns:minmax(0,3fr) minmax(0,2fr)}.stack{display:grid;gap:14px}
@media(max-width:860px){.two,.uneven{grid-template-columns:minmax(0,1fr)}}
svg{display:block;width:100%;height:auto;font-family:inherit}
.grid{stroke:var(--grid);fill:none}.axis{stroke:var(--soft);stroke-opacity:.6;fill:none}
.tick{fill:var(--soft);font-size:12px}.heat .tick,.heat .count{font-size:inherit}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.faint{stroke-width:1;stroke-opacity:.3}
.dashed{stroke-width:1.6;stroke-dasharray:5 4}.dot{stroke:var(--card);stroke-width:1}
.empty{fill:var(--grid);fill-opacity:.5}.count{fill:var(--ink)}.count.on{fill:var(--card);font-weight:600}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;margin:0 0 10px;color:var(--soft)}
.legend i{display:inline-block;width:18px;height:0;border-top:3px solid;vertical-align:4px;margin-right:7px;border-radius:2px}
.legend i.dash{border-top-style:dashed;border-top-width:2px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:600;color:var(--soft);font-size:12.5px;text-align:right;padding:6px 10px;border-bottom:1px solid var(--rule);
position:sticky;top:0;background:var(--card)}
td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--grid)}tr:last-child td{border-bottom:0}
th:first-child,td:first-child,td.text,th.text{text-align:left;overflow-wrap:anywhere}
td.best{font-weight:700;color:var(--good)}
.scroll{max-height:560px;overflow:auto}.wide{overflow-x:auto}
.meter{display:inline-block;width:64px;height:7px;border-radius:4px;background:var(--grid);margin-right:8px;overflow:hidden;
vertical-align:1px}.meter i{display:block;height:100%;background:var(--right)}.meter i.low{background:var(--wrong)}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(118px,1fr));gap:12px}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;overflow:hidden}
figure img{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:#8883}
figure img.tiny{image-rendering:pixelated}
figcaption{padding:7px 9px 8px;font-size:12.5px;line-height:1.35;overflow-wrap:anywhere}
figure.wrong{border-color:var(--wrong)}figure.wrong b{color:var(--bad)}figure.right b{color:var(--good)}
details{margin:10px 0;background:var(--card);border:1px solid var(--rule);border-radius:10px}
summary{cursor:pointer;padding:11px 16px;font-weight:600}details>div{padding:0 16px 14px}
pre{margin:0;overflow:auto;font:12.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.facts td{text-align:left}.facts td:first-child{width:32%;color:var(--soft)}
@media print{body{background:#fff}.scroll{max-height:none}}
"""
