// Sets the theme before the first paint. A classic script, because modules run after it.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem('spillway-theme');
  } catch {
    // Storage may be forbidden; the system's theme holds then.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
