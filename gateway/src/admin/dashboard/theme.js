// Sets the theme before the first paint, and follows the system's. A classic script, because modules run after the paint.
(() => {
  const system = matchMedia('(prefers-color-scheme: dark)');
  const apply = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem('spillway-theme');
    } catch {
      // Storage may be forbidden; the system's theme holds then.
    }
    const theme = chosen === 'light' || chosen === 'dark' ? chosen : system.matches ? 'dark' : 'light';
    if (document.documentElement.dataset.theme === theme) return;
    document.documentElement.dataset.theme = theme;
    document.dispatchEvent(new Event('spillway-theme'));
  };
  apply();
  system.addEventListener('change', apply);
  document.addEventListener('spillway-theme-chosen', apply);
})();
