// A short code such as --skip-bad is not broken after its dashes.
for (const code of document.querySelectorAll(".md-typeset :not(pre) > code"))
  if (code.textContent.length <= 28) code.style.whiteSpace = "nowrap";
