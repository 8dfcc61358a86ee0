// The name of the search dialog for screen readers, which the theme leaves out.
document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
