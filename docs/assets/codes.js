// A short code such as --skip-bad is not broken after its dashes, nor a number such as 1.9e-07.
for (const code of document.querySelectorAll(".md-typeset :not(pre) > code"))
  if (code.textContent.length <= 28) code.style.whiteSpace = "nowrap";
for (const cell of document.querySelectorAll(".md-typeset td"))
  if (cell.textContent.trim().length <= 12) cell.style.whiteSpace = "nowrap";
