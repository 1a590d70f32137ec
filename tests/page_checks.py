"""What is asked of a page in a browser: JavaScript to be evaluated in it."""

READABLE = 4.5  # contrast of text, https://www.w3.org/TR/WCAG22/#contrast-minimum

STICKING_OUT = """() => {
    const width = document.documentElement.clientWidth
    return [...document.querySelectorAll("body *")].filter(one => {
        const box = one.getBoundingClientRect()
        return box.width > 0 && (box.right > width + 1 || box.left < -1) && !one.closest(".scroll")
    }).map(one => one.outerHTML.slice(0, 120))
}"""

CONTRASTS = """() => {
    const parts = text => text.match(/[0-9.]+/g).map(Number)
    const over = (top, below) => {
        const [r, g, b, a = 1] = top
        return [r, g, b].map((value, i) => a * value + (1 - a) * below[i])
    }
    const light = colour => colour.map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
    const behind = one => {
        const layers = []
        for (let at = one; at; at = at.parentElement) layers.push(parts(getComputedStyle(at).backgroundColor))
        return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255])
    }
    const found = []
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
    while (walker.nextNode()) {
        const one = walker.currentNode.parentElement
        if (!walker.currentNode.data.trim() || !one.getClientRects().length) continue
        const style = getComputedStyle(one), paper = behind(one)
        let opacity = 1
        for (let at = one; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity)
        const ink = parts(one.closest("svg") ? style.fill : style.color)
        const seen = over([ink[0], ink[1], ink[2], (ink[3] ?? 1) * opacity], paper)
        const [low, high] = [light(seen), light(paper)].sort((a, b) => a - b)
        found.push([(high + 0.05) / (low + 0.05), one.outerHTML.slice(0, 100)])
    }
    return found
}"""
